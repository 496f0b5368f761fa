"""Images as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from distill.denoiser import Denoiser
from distill.encoders.encoder import autoencoder
from distill.generator import Generator

if TYPE_CHECKING:
    from PIL.Image import Image

LATENTS = "these pictures are of latents, their first 3 channels: a vae/ in the teacher's folder decodes them"


def denoiser_of(model: nn.Module) -> Denoiser:
    """The denoiser in a one-step generator, or the model itself."""
    return model.denoiser if isinstance(model, Generator) else cast(Denoiser, model)


def has_no_decoder(model: nn.Module) -> bool:
    """Whether the samples of `model` are latents that nothing decodes."""
    return denoiser_of(model).latents is not False and autoencoder(denoiser_of(model)) is None


def to_images(samples: Tensor, model: nn.Module) -> Tensor:
    """The samples [N, C, H, W] of `model` as images [N, 1 or 3, H, W]: latents are decoded.

    Of latents that nothing decodes the first three channels, which look like the image: each has 0 at its mean over all
    samples and 1 at two standard deviations.
    """
    if has_no_decoder(model):
        seen = samples[:, : 3 if samples.shape[1] >= 3 else 1].float()
        std, mean = torch.std_mean(seen, (0, 2, 3), keepdim=True, correction=0)
        return (seen - mean) / (2 * std).clamp(min=1e-8)
    decoder = autoencoder(denoiser_of(model)) if denoiser_of(model).latents else None
    return samples if decoder is None else decoder.decode(samples)


def free_decoder(model: nn.Module) -> None:
    """Free the decoder, if there is one, until it is next used."""
    if (decoder := autoencoder(denoiser_of(model))) is not None:
        decoder.free()


def grid(images: Tensor, columns: int, least: int = 64, border: int = 1) -> Image:
    """`images` [N, C, H, W] in [-1, 1] as one picture, row by row, each enlarged to at least `least` pixels
    and framed by `border` white ones.

    Values become 8 bits as in EDM's and SiD's evaluation: 127.5 x + 128, truncated.
    """
    from PIL.Image import fromarray

    count, channels, height, width = images.shape
    factor = max(1, -(-least // height))
    pixels = (images.detach().float().cpu() * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    pixels = pixels.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    rows = -(-count // columns)
    height, width = pixels.shape[2:]
    canvas = torch.full((rows * columns, channels, height + 2 * border, width + 2 * border), 255, dtype=torch.uint8)
    canvas[:count, :, border : border + height, border : border + width] = pixels
    tiles = canvas.reshape(rows, columns, *canvas.shape[1:]).permute(0, 3, 1, 4, 2)
    picture = tiles.reshape(rows * tiles.shape[1], columns * tiles.shape[3], channels).numpy()
    return fromarray(picture[..., 0] if channels == 1 else picture)
