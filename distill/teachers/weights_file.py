"""The weights of a network that diffusers lacks, in one safetensors file under the network's own names."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from distill.errors import UserError, one_line
from distill.saved_files import load_tensors, save_tensors

WEIGHTS = "network.safetensors"


def save_weights(module: nn.Module, folder: Path) -> None:
    """Write the state dict of `module` to `folder`, with floating-point tensors in float32."""
    state = {name: value.detach() for name, value in module.state_dict().items()}
    floats = {name: value.float() for name, value in state.items() if value.is_floating_point()}
    save_tensors({name: value.contiguous() for name, value in (state | floats).items()}, folder / WEIGHTS)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read the state dict in `folder`, mapped into memory.

    Raises:
        UserError: The file is missing or damaged.
    """
    file = folder / WEIGHTS
    try:
        return load_tensors(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"teacher: cannot read '{file}': {one_line(error)}") from error


def check_weights(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise UserError if the names or the shapes in `state` differ from those of the network."""
    wanted = {key: value.shape for key, value in network.state_dict().items()}
    for key in sorted(wanted.keys() ^ state.keys()):
        raise UserError(f"weights: '{key}' is {'missing' if key in wanted else 'no weight of this network'}")
    for key, shape in wanted.items():
        if state[key].shape != shape:
            raise UserError(f"weights: '{key}' has shape {tuple(state[key].shape)}, the network {tuple(shape)}")


def fill(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network on the meta device its weights, in float32.

    Names and shapes are compared before any memory is allocated.

    Args:
        network: The network, which is changed in place.
        state: Its state dict.

    Raises:
        UserError: The weights do not fit the network.
    """
    check_weights(network, state)
    copies = {key: value.to(torch.float32, copy=True) for key, value in state.items()}  # `state` may be a map of a file
    network.load_state_dict(copies, assign=True)
