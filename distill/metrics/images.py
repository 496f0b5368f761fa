"""Checks of the images and labels that a metric gets."""

import torch
from torch import Tensor

from distill.errors import UserError, require

Shape = tuple[int, ...]
"""The shape (C, *spatial) of one image."""


def image_shape(images: Tensor) -> Shape:
    """Return the shape (C, *spatial) of one of the `images` [N, C, *spatial].

    Raises:
        UserError: The images have fewer than three dimensions.
    """
    require(images.ndim >= 3, f"images: {list(images.shape)} given, expected [N, C, *spatial]")
    return tuple(images.shape[1:])


def checked_images(images: Tensor, shape: Shape) -> Tensor:
    """Return images as float64 on the CPU, clamped to [-1, 1].

    Args:
        images: Images [N, *shape], floating-point and finite.
        shape: The shape that each image must have.

    Raises:
        UserError: The shape is another one, or values are integers, NaN or infinite.
    """
    if tuple(images.shape[1:]) != shape:
        raise UserError(f"images: {list(images.shape)} given, expected [N, {', '.join(map(str, shape))}]")
    require(images.is_floating_point(), f"images: {images.dtype} given, expected floating point in [-1, 1]")
    pixels = images.detach().to("cpu", torch.float64)
    if broken := int((~pixels.isfinite()).flatten(1).any(dim=1).sum()):
        raise UserError(f"images: {broken} of {len(pixels)} hold NaN or infinity, expected finite values")
    return pixels.clamp(-1, 1)


def checked_labels(labels: Tensor, count: int) -> Tensor:
    """Return labels as int64 on the CPU.

    Args:
        labels: Labels [N] of an integer dtype.
        count: The number N of images.

    Raises:
        UserError: The shape is not [N], or the labels are no integers.
    """
    if labels.shape != (count,) or labels.is_floating_point():
        raise UserError(f"labels: {labels.dtype} {list(labels.shape)} given, expected integers [{count}], one an image")
    return labels.detach().to("cpu", torch.int64)
