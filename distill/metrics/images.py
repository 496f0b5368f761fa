"""Checks of the images and labels that a metric gets."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.errors import UserError

Shape = tuple[int, ...]
"""(C, *spatial)."""


def image_shape(images: Tensor) -> Shape:
    """Return (C, *spatial) of `images` [N, C, *spatial]; raises UserError for fewer dimensions."""
    if images.ndim < 3:
        raise UserError(f"images: {list(images.shape)} given, expected [N, C, *spatial]")
    return tuple(images.shape[1:])


def checked_images(images: Tensor, shape: Shape) -> Tensor:
    """Return images as float64 [N, *shape] on the CPU, clamped to [-1, 1]; raises UserError for other shapes."""
    if tuple(images.shape[1:]) != shape:
        raise UserError(f"images: {list(images.shape)} given, expected [N, {', '.join(map(str, shape))}]")
    if not images.is_floating_point():
        raise UserError(f"images: {images.dtype} given, expected floating point in [-1, 1]")
    pixels = images.detach().to("cpu", torch.float64)
    if broken := int((~pixels.isfinite()).flatten(1).any(dim=1).sum()):
        raise UserError(f"images: {broken} of {len(pixels)} hold NaN or infinity, expected finite values")
    return pixels.clamp(-1, 1)


def checked_labels(labels: Tensor, count: int) -> Tensor:
    """Return labels as int64 [N] on the CPU, one an image; raises UserError for anything else."""
    if labels.shape != (count,) or labels.is_floating_point():
        raise UserError(f"labels: {labels.dtype} {list(labels.shape)} given, expected integers [{count}], one an image")
    return labels.detach().to("cpu", torch.int64)
