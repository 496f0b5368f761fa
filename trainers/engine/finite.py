"""The search for weights that are not finite."""

from collections.abc import Container, Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from trainers.engine.player import TrainState
from trainers.engine.sharding import local


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors in which this process holds a number that is not finite.

    The host waits for the device once.

    Args:
        tensors: The tensors by name. Those that hold no floating-point numbers are finite.
    """
    rows = {name: local(value.detach()) for name, value in tensors.items() if value.is_floating_point()}
    rows = {name: value for name, value in rows.items() if value.numel()}
    if not rows:
        return []
    # A largest absolute value is not finite where one number is not. Unlike `isfinite` it takes no memory, and torch's
    # private foreach form takes few kernel launches.
    largest = torch._foreach_norm(list(rows.values()), float("inf"))
    device = largest[0].device
    finite = torch.stack([value.to(device, torch.float64) for value in largest]).isfinite().tolist()
    return [name for name, whole in zip(rows, finite, strict=True) if not whole]


def weights_not_finite(state: TrainState, accelerator: Accelerator) -> list[str]:
    """Return the names of the players and averages whose weights are not finite on some process. Collective."""
    networks: dict[str, tuple[nn.Module, Container[str]]] = {
        name: (player.bare, player.frozen_names) for name, player in state.players.items()
    }
    averages = {"the average": state.ema, **{f"the average {std:g}": ema for std, ema in state.power_ema.items()}}
    networks |= {name: (ema.module, ema.frozen_names) for name, ema in averages.items()}
    bad = [
        bool(not_finite({name: value for name, value in network.state_dict().items() if name not in frozen}))
        for network, frozen in networks.values()
    ]
    # Each process sees its own shards alone, and all of them must come to the same answer.
    found = accelerator.gather(torch.tensor([bad], dtype=torch.int32, device=accelerator.device)).any(0).tolist()
    return [name for name, flag in zip(networks, found, strict=True) if flag]
