"""Weights as files hold them: their names, shapes, dtypes and numbers are checked before a network takes them."""

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.errors import UserError, require
from distill.saved_files import check_header, tensor_dtypes

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FLOATS_IN_FILES = ("F16", "BF16", "F32", "F64")
"""The names of these dtypes in safetensors files."""


def check_weights(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise UserError if the names, the shapes or the kinds of dtype in `state` differ from those of the network."""
    wanted = network.state_dict()
    for key in sorted(wanted.keys() ^ state.keys()):
        raise UserError(f"weights: '{key}' is {'missing' if key in wanted else 'no weight of this network'}")
    for key, value in wanted.items():
        if state[key].shape != value.shape:
            raise UserError(f"weights: '{key}' has shape {tuple(state[key].shape)}, the network {tuple(value.shape)}")
        require(
            fits(state[key].dtype, value.dtype),
            f"weights: '{key}' is of {state[key].dtype}, the network's is of {value.dtype}",
        )


def fits(found: torch.dtype, wanted: torch.dtype) -> bool:
    """Return whether numbers of the dtype `found` are of the kind of the dtype `wanted`, in whatever precision."""
    return found in FLOATS if wanted.is_floating_point else found == wanted


def check_finite(state: Mapping[str, Tensor], network: nn.Module) -> None:
    """Raise UserError if a number in the weights `state` of a network is not finite."""
    masks = buffer_names(network)
    for key, value in state.items():
        require(is_finite(value, key in masks), f"weights: '{key}' holds numbers that are not finite")


def buffer_names(network: nn.Module) -> set[str]:
    """Return the names of a network's buffers. They may be masks, which hold minus infinity."""
    return {name for name, _ in network.named_buffers()}


def check_loaded(model: nn.Module, files: Iterable[Path]) -> None:
    """Check the weights that a library has loaded and cast.

    Args:
        model: The model with its weights.
        files: The safetensors files that it was loaded from, which may hold further tensors.

    Raises:
        UserError: A file is damaged or holds other than floating-point numbers for a weight, or a weight is not finite.
    """
    state = model.state_dict()
    for file in files:
        for key, kind in _dtypes(file).items():
            if key in state and state[key].is_floating_point() and kind not in FLOATS_IN_FILES:
                raise UserError(f"weights: '{key}' is of {kind} in {file.name}, the network's is of {state[key].dtype}")
    check_finite(state, model)


def _dtypes(file: Path) -> dict[str, str]:
    try:
        check_header(file)
        return tensor_dtypes(file)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError, struct.error) as error:
        raise UserError(f"weights: {file.name} is damaged: its header is no table of tensors") from error


def is_finite(value: Tensor, mask: bool = False) -> bool:
    """Return whether a tensor has finite numbers alone. Whole numbers are, and so are weights on the meta device.

    Args:
        value: The tensor.
        mask: Whether it may hold minus infinity too.
    """
    if not value.is_floating_point() or value.is_meta or not value.numel():
        return True
    # The smallest and the largest number are NaN where one is. Unlike `isfinite`, `aminmax` takes no memory.
    smallest, largest = value.detach().aminmax()
    return bool((largest < torch.inf) & (smallest > -torch.inf)) if not mask else bool(largest < torch.inf)


def fill(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network the weights of a file, in float32. They may be a map of the file.

    Names, shapes and dtypes are compared before any memory is allocated.

    Args:
        network: The network, which is changed in place. It may be on the meta device.
        state: Its state dict.

    Raises:
        UserError: The weights do not fit the network, or they are not finite.
    """
    check_weights(network, state)
    floats = {key: value.to(torch.float32, copy=True) for key, value in state.items() if value.is_floating_point()}
    check_finite(floats, network)  # after the conversion, in which numbers of float64 may overflow
    others = {key: value.clone() for key, value in state.items() if key not in floats}
    network.load_state_dict({**floats, **others}, assign=True)
