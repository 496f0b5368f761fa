"""What a metric takes for images and labels, and what it refuses."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.errors import UserError

Shape = tuple[int, int, int]
"""(C, H, W)."""


def image_shape(images: Tensor) -> Shape:
    """(C, H, W) of `images` [N, C, H, W]; raises UserError for another number of dimensions."""
    if images.ndim != 4:
        raise UserError(f"images: {list(images.shape)} given, expected [N, C, H, W]")
    _, channels, height, width = images.shape
    return channels, height, width


def checked_images(images: Tensor, shape: Shape) -> Tensor:
    """Float64 [N, C, H, W] on the CPU, clamped to [-1, 1]; raises UserError for what is not images of `shape`."""
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise UserError(f"images: {list(images.shape)} given, expected [N, {', '.join(map(str, shape))}]")
    if not images.is_floating_point():
        raise UserError(f"images: {images.dtype} given, expected floating point in [-1, 1]")
    pixels = images.detach().to("cpu", torch.float64)
    if broken := int((~pixels.isfinite()).flatten(1).any(dim=1).sum()):
        raise UserError(f"images: {broken} of {len(pixels)} hold NaN or infinity, expected finite values")
    return pixels.clamp(-1, 1)


def checked_labels(labels: Tensor, count: int) -> Tensor:
    """Int64 [N] on the CPU, one label an image; raises UserError for anything else."""
    if labels.shape != (count,) or labels.is_floating_point():
        raise UserError(f"labels: {labels.dtype} {list(labels.shape)} given, expected integers [{count}], one an image")
    return labels.detach().to("cpu", torch.int64)
