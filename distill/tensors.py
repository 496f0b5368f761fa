"""Small operations on tensors: shapes that broadcast, and copies to a device for which the host does not wait."""

import torch
from torch import Tensor


def expand(value: Tensor, like: Tensor) -> Tensor:
    """Return `value` [B] as [B, 1, ...], with as many dimensions as `like` [B, ...]."""
    return value.reshape(-1, *[1] * (like.ndim - 1))


def to_device(value: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return `value` on `device`, and in `dtype` where it is a floating-point tensor."""
    value = value.to(dtype) if value.is_floating_point() else value  # before the copy, which is smaller then
    if device.type == "cuda" and value.device.type == "cpu":  # the host does not wait for a copy from pinned memory
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def match(value: Tensor, like: Tensor) -> Tensor:
    """Return `value` on the device and, where it is a floating-point tensor, in the dtype of `like`."""
    return to_device(value, like.device, like.dtype)


def beside(like: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Return each of `values` [B] as a factor [B, 1, ...] of `like` [B, ...], on its device and in its dtype.

    Times, noise levels and all that depends on them are float64 on the host, and reach the device in one message.
    """
    rows = match(torch.stack(values), like)
    return tuple(expand(row, like) for row in rows)
