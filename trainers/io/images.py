"""Samples as images, and images as pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from distill.denoiser import Denoiser
from distill.generator import Generator

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

LATENTS = "these pictures are of latents, their first 3 channels: a vae/ in the teacher's folder decodes them"


def denoiser_of(model: nn.Module) -> Denoiser:
    """Return the denoiser in a one-step generator, or the model itself."""
    return model.denoiser if isinstance(model, Generator) else cast(Denoiser, model)


def has_no_decoder(model: nn.Module) -> bool:
    """Return whether the samples of `model` are latents and it has no autoencoder to decode them."""
    denoiser = denoiser_of(model)
    return bool(denoiser.latents) and denoiser.network.autoencoder is None


def to_images(samples: Tensor, model: nn.Module) -> Tensor:
    """Return samples as images, in [-1, 1] but for overshoots. Latents are decoded.

    Latents that the model cannot decode become their first three channels, which look like the image. Each channel is
    shifted and scaled over all samples, so that its mean is 0 and two standard deviations are 1.

    Args:
        samples: The samples [N, C, *spatial] of the model.
        model: A generator or a denoiser.

    Returns:
        [N, 1 or 3, *spatial].
    """
    denoiser = denoiser_of(model)
    if has_no_decoder(model):
        seen = samples[:, : 3 if samples.shape[1] >= 3 else 1].float()
        std, mean = torch.std_mean(seen, (0, *range(2, seen.ndim)), keepdim=True, correction=0)
        return (seen - mean) / (2 * std).clamp(min=1e-8)
    decoder = denoiser.network.autoencoder if denoiser.latents else None
    return samples if decoder is None else decoder.decode(samples)


def free_decoder(model: nn.Module) -> None:
    """Release the decoder of `model`, if there is one, until it is next used."""
    if (decoder := denoiser_of(model).network.autoencoder) is not None:
        decoder.free()


def picture_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return height and width of the picture of a sample of `shape` (C, *spatial), whose frames lie side by side."""
    return shape[-2] if len(shape) > 2 else 1, shape[-1] * math.prod(shape[1:-2])


def flat_pictures(images: Tensor) -> Tensor:
    """Return images [N, C, *spatial] as pictures [N, 1 or 3, H, W].

    Frames lie side by side, and a single spatial dimension becomes one row. A picture has the first three channels of
    an image, or the first one if the image has fewer than three.
    """
    images = images[:, : 3 if images.shape[1] >= 3 else 1]
    if images.ndim == 3:
        return images[:, :, None]
    while images.ndim > 4:  # [N, C, F, ..., H, W] -> [N, C, ..., H, F W]
        images = images.movedim(2, -2).flatten(-2)
    return images


def grid(images: Tensor, columns: int, least: int = 64, border: int = 1, captions: Sequence[str] = ()) -> Image:
    """Return images as one picture, row by row.

    Values become 8 bits as in the evaluation of EDM and SiD: 127.5 x + 128, truncated.

    Args:
        images: [N, C, *spatial] in [-1, 1].
        columns: The number of images in a row.
        least: The least height of an image in pixels. A smaller image is enlarged by a whole factor.
        border: The white pixels around each image.
        captions: The text above each image. A row has none if it is that of the row above.
    """
    from PIL.Image import fromarray

    count, channels, height, _ = (images := flat_pictures(images)).shape
    factor = max(1, -(-least // height))
    pixels = (images.detach().float().cpu() * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    pixels = pixels.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    rows = -(-count // columns)
    # White around each image, and in place of the images that the last row lacks.
    canvas = nn.functional.pad(pixels, (border, border, border, border, 0, 0, 0, rows * columns - count), value=255)
    tiles = canvas.reshape(rows, columns, *canvas.shape[1:]).permute(0, 3, 1, 4, 2)
    picture = tiles.reshape(rows * tiles.shape[1], columns * tiles.shape[3], channels).numpy()
    drawn = fromarray(picture[..., 0] if channels == 1 else picture)
    return _with_captions(drawn, captions, columns, rows) if captions else drawn


def _with_captions(picture: Image, captions: Sequence[str], columns: int, rows: int) -> Image:
    """Return a picture of `rows` rows and `columns` columns with a line of captions above each row that needs one."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    width, height = picture.width // columns, picture.height // rows
    size = max(10, min(24, width // 10))
    # The font of matplotlib has Greek, Cyrillic and many other letters. That of Pillow has Latin ones alone.
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
    lines = [list(captions[row * columns : (row + 1) * columns]) for row in range(rows)]
    new = [not row or lines[row] != lines[row - 1][: len(lines[row])] for row in range(rows)]
    head, top = 2 * size, 0
    canvas = Image.new(picture.mode, (picture.width, picture.height + sum(new) * head), "white")
    pen = ImageDraw.Draw(canvas)
    for row, line in enumerate(lines):
        if new[row]:
            for column, text in enumerate(line):
                pen.text((column * width + 2, top + size // 4), _fitted(text, font, width - 4), fill="black", font=font)
            top += head
        canvas.paste(picture.crop((0, row * height, picture.width, (row + 1) * height)), (0, top))
        top += height
    return canvas


def _fitted(text: str, font: FreeTypeFont, width: int) -> str:
    """Return a text, without its last letters if it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}\N{HORIZONTAL ELLIPSIS}") > width:
        text = text[:-1]
    return f"{text}\N{HORIZONTAL ELLIPSIS}"
