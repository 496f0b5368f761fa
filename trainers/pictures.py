"""Images as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.denoiser import Denoiser
from distill.encoders import codec
from distill.generator import Generator

if TYPE_CHECKING:
    from PIL.Image import Image

DECODED = 4  # latents at once


def visible(samples: Tensor, model: Generator | Denoiser) -> Tensor:
    """The samples [N, C, H, W] of `model` as images: latents decoded, or their first three channels without a codec."""
    denoiser = model.denoiser if isinstance(model, Generator) else model
    if not denoiser.latents:
        return samples
    decoder = codec(denoiser)
    if decoder is None:
        return samples[:, :3]
    decoder.device = samples.device
    images = torch.cat([decoder.decode(part) for part in samples.float().split(DECODED)])
    decoder.free()
    return images


def grid(images: Tensor, columns: int, least: int = 64) -> Image:
    """`images` [N, C, H, W] in [-1, 1] as one picture, row by row, each enlarged to at least `least` pixels.

    Values become 8 bits as in EDM's and SiD's evaluation: 127.5 x + 128, truncated.
    """
    from PIL.Image import fromarray

    count, channels, height, width = images.shape
    factor = max(1, -(-least // height))
    pixels = (images.detach().float().cpu() * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    pixels = pixels.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    rows = -(-count // columns)
    canvas = torch.full((rows * columns, channels, height * factor + 2, width * factor + 2), 255, dtype=torch.uint8)
    canvas[:count, :, 1:-1, 1:-1] = pixels
    tiles = canvas.reshape(rows, columns, *canvas.shape[1:]).permute(0, 3, 1, 4, 2)
    picture = tiles.reshape(rows * tiles.shape[1], columns * tiles.shape[3], channels).numpy()
    return fromarray(picture[..., 0] if channels == 1 else picture)
