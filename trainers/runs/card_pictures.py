"""The pictures of samples that an export holds beside its model card."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.conditions import Condition
from distill.errors import require
from distill.export.format import float32, seen_classes
from distill.generator import Generator
from distill.public_text import public_value
from distill.random import Random
from trainers.data.batches import unit_noise
from trainers.data.labels import captions
from trainers.io.images import free_decoder, grid, has_no_decoder, picture_size, to_images
from trainers.runs.draw import SAMPLES_AT_ONCE

if TYPE_CHECKING:
    from distill.export import CardPicture

PROMPTS = (
    "a photograph of a red cat",
    "a lake in the mountains at sunrise, oil painting",
    "a bowl of fruit on a wooden table",
    "a street in the rain at night",
)
"""The prompts where the user gives none. Those of the data may be private, and an export needs no data."""
MOST_SHOWN, MOST_IN_GRID = 16, 60
MOST_PIXELS = 2**21  # of a picture without prompts, which has fewer samples where they are large
GRID = "samples.png"


def check_prompts(generator: Generator, prompts: Sequence[str]) -> None:
    """Raise UserError when a generator cannot be given these prompts."""
    takes = generator.denoiser.network.text_encoder is not None
    require(takes or not prompts, "prompts: the teacher takes no prompts")
    require(len(prompts) <= MOST_SHOWN, f"prompts: a card has at most {MOST_SHOWN}, got {len(prompts)}")


def card_pictures(generator: Generator, prompts: Sequence[str] = ()) -> list[CardPicture]:
    """Return the pictures of a generator's samples for its card: a grid, and one of each prompt if it takes prompts.

    They are drawn in float32 on the CPU, as an export is compared, so that they do not depend on the device. The noise
    is that of `distill sample`. Latents without a decoder, and conditions without an encoder, have no pictures.

    Args:
        generator: The generator.
        prompts: The prompts. None of them for PROMPTS.
    """
    from distill.export import CardPicture

    network = generator.denoiser.network
    if has_no_decoder(generator) or (network.text_encoder is None and network.example(1).keys() - {"labels"}):
        return []
    generator = float32(generator)
    if network.text_encoder is None:
        cond, columns = _classes(generator)
        images = _draw(generator, cond, len(cond.labels) if cond.labels is not None else _count(generator)[0])
        names = captions(cond.labels, network.class_names)
        return [CardPicture(name=GRID, content=_png(images, columns, names))]
    asked = list(prompts or PROMPTS)
    images = _draw(generator, _encoded(generator, asked), len(asked))
    single = [
        CardPicture(name=f"samples/{number}.png", content=_png(images[number : number + 1], 1), prompt=prompt)
        for number, prompt in enumerate(public_value(asked))
    ]
    return [CardPicture(name=GRID, content=_png(images, min(len(asked), 4))), *single]


def _count(generator: Generator) -> tuple[int, int]:
    """Return the number of samples in a grid, and of its columns."""
    height, width = picture_size(generator.denoiser.image_shape or generator.denoiser.network.shape)
    most = max(4, min(MOST_IN_GRID, MOST_PIXELS // (height * width)))
    columns = 10 if most >= 20 else 4
    return most // columns * columns, columns


def _classes(generator: Generator) -> tuple[Condition, int]:
    """Return the labels of a grid and the number of its columns. The condition is empty without classes.

    The classes stand in turn. Of more classes than samples some are taken at equal distances.
    """
    (count, columns), seen = _count(generator), seen_classes(generator)
    if not seen:
        return Condition(), columns
    index = range(count)
    chosen = [seen[i % len(seen)] if len(seen) <= count else seen[i * len(seen) // count] for i in index]
    return Condition(labels=torch.tensor(chosen)), columns


def _encoded(generator: Generator, prompts: list[str]) -> Condition:
    """Return the conditions [N, ...] of N prompts, encoded on the CPU. The encoder's memory is freed."""
    encoder = generator.denoiser.network.text_encoder
    assert encoder is not None
    encoder.device = torch.device("cpu")
    cond = Condition(encoder.encode(prompts))
    encoder.free()
    return cond


@torch.no_grad()
def _draw(generator: Generator, cond: Condition, count: int) -> Tensor:
    """Return `count` images [N, C, *spatial]."""
    shape, samples = generator.denoiser.network.shape, []
    for index in torch.arange(count).split(SAMPLES_AT_ONCE):
        noise = unit_noise(shape, Random.at(0, index).stream("sample"))
        samples.append(generator(noise, cond.rows(index)))
    images = to_images(torch.cat(samples), generator)
    free_decoder(generator)
    return images


def _png(images: Tensor, columns: int, names: Sequence[str] = ()) -> bytes:
    """Return a picture of images [N, C, *spatial] as the content of a PNG."""
    stream = io.BytesIO()
    grid(images, columns, least=64 if len(images) > 1 else 1, border=int(len(images) > 1), captions=names).save(
        stream, "PNG"
    )
    return stream.getvalue()
