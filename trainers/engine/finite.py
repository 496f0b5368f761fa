"""The search for weights that are not finite."""

from collections.abc import Container

import torch
from accelerate import Accelerator
from torch import nn

from distill.weights import buffer_names
from trainers.engine.player import TrainState
from trainers.engine.sharding import local


def not_finite(network: nn.Module, frozen_names: Container[str] = ()) -> list[str]:
    """Return the names of the weights of which this process holds a number that is not finite.

    Whole numbers are finite, and a buffer may hold minus infinity as a mask. The host waits for the device once.

    Args:
        network: The network.
        frozen_names: The weights that are not looked at.
    """
    masks, state = buffer_names(network), network.state_dict()
    floats = {name: value for name, value in state.items() if name not in frozen_names and value.is_floating_point()}
    rows = {name: local(value.detach()) for name, value in floats.items()}
    weights = {name: value for name, value in rows.items() if name not in masks and value.numel()}
    # A largest absolute value is not finite where one number is not. Unlike `isfinite` it takes no memory, and torch's
    # private foreach form takes few kernel launches.
    norms = torch._foreach_norm(list(weights.values()), torch.inf) if weights else ()
    largest = dict(zip(weights, norms, strict=True))
    largest |= {name: value.amax() for name, value in rows.items() if name in masks and value.numel()}
    if not largest:
        return []
    device = next(iter(largest.values())).device
    finite = (torch.stack([value.to(device, torch.float64) for value in largest.values()]) < torch.inf).tolist()
    return [name for name, whole in zip(largest, finite, strict=True) if not whole]


def weights_not_finite(state: TrainState, accelerator: Accelerator) -> list[str]:
    """Return the names of the players and averages whose weights are not finite on some process. Collective."""
    networks: dict[str, tuple[nn.Module, Container[str]]] = {
        name: (player.bare, player.frozen_names) for name, player in state.players.items()
    }
    averages = {"the average": state.ema, **{f"the average {std:g}": ema for std, ema in state.power_ema.items()}}
    networks |= {name: (ema.module, ema.frozen_names) for name, ema in averages.items()}
    bad = [bool(not_finite(network, frozen)) for network, frozen in networks.values()]
    # Each process sees its own shards alone, and all of them must come to the same answer.
    found = accelerator.gather(torch.tensor([bad], dtype=torch.int32, device=accelerator.device)).any(0).tolist()
    return [name for name, flag in zip(networks, found, strict=True) if flag]
