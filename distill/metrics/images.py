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
    check_values(pixels)
    return pixels.clamp(-1, 1)


def as_bytes(images: Tensor, who: str) -> Tensor:
    """Return images as pixels of 8 bits, as an image file holds them, with three channels.

    Half a grey level is rounded up: it is the floor of 127.5 x + 128, as EDM and StyleGAN have it.

    Args:
        images: Images [N, 1 or 3, H, W], floating-point and finite. Those outside [-1, 1] are clamped.
        who: The network that takes the pixels, in messages.

    Returns:
        Pixels, uint8 [N, 3, H, W], on the device of the images.

    Raises:
        UserError: They are no such images.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"{who}: images {list(images.shape)} given, expected [N, 1 or 3, H, W]")
    require(images.is_floating_point(), f"{who}: {images.dtype} images given, expected floating point in [-1, 1]")
    check_values(images)
    pixels = (images.detach().float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    return pixels.expand(-1, 3, -1, -1)


def resized(images: Tensor, side: int) -> Tensor:
    """Return images of `side` x `side` pixels, resized in 8 bits by Pillow's Lanczos filter.

    Args:
        images: Images [N, 1 or 3, H, W] in [-1, 1].
        side: Pixels to a side.

    Returns:
        Images [N, 3, side, side], float32 in [-1, 1] on the CPU, in 256 levels.

    Raises:
        UserError: They are no such images.
    """
    import numpy as np
    from PIL import Image

    pictures = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in as_bytes(images, "resize").cpu()]
    small = np.stack([np.asarray(one.resize((side, side), Image.Resampling.LANCZOS)) for one in pictures])
    return torch.from_numpy(small).permute(0, 3, 1, 2).float() / 127.5 - 1


def check_values(images: Tensor) -> None:
    """Raise UserError if some of the images [N, ...] hold NaN or infinity."""
    if broken := int((~images.isfinite()).flatten(1).any(dim=1).sum()):
        raise UserError(f"images: {broken} of {len(images)} hold NaN or infinity, expected finite values")


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
