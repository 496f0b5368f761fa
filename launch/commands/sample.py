"""distill sample: a picture of what a run has made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from distill.encoders.encoder import text_encoder
from distill.errors import UserError
from distill.random import Random
from launch.commands.evaluate import WhichOption
from trainers.data.batches import inputs, preview
from trainers.io.console import plain
from trainers.io.images import LATENTS, grid, has_no_decoder, to_images
from trainers.runs.load import Trained, load_trained

AT_ONCE = 20  # samples


def sample(
    folder: Annotated[Path, typer.Argument(help="run folder")],
    out: Annotated[Path | None, typer.Option(help="PNG to write; FOLDER/sample.png when left out")] = None,
    count: Annotated[int | None, typer.Option(help="images; 60, or one a prompt, when left out", min=1)] = None,
    columns: Annotated[int, typer.Option(help="images in a row", min=1)] = 10,
    label: Annotated[
        int | None, typer.Option(help="one class for all; classes or prompts in turn when left out")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="instead of the recipe's; several in turn")] = None,
    seed: Annotated[int, typer.Option(help="noise")] = 0,
    teacher: Annotated[bool, typer.Option("--teacher", help="the teacher at 35 evaluations instead")] = False,
    separate: Annotated[
        bool, typer.Option("--separate", help="a PNG each, in the folder OUT; FOLDER/sample when left out")
    ] = False,
    which: WhichOption = "last",
) -> None:
    """Write a grid of samples, or one file each."""
    product = load_trained(folder, which)
    count = count or len(prompt or range(60))
    images = draw(product, count, label, seed, teacher, prompt or [])
    out = out or folder / ("sample" if separate else "sample.png")
    try:
        if separate:
            out.mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(images):
                grid(image[None], 1, least=1, border=0).save(out / f"{number:06d}.png")
        else:
            grid(images, columns).save(out)
    except (OSError, ValueError) as error:  # no such folder; an ending that names no format of pictures
        raise UserError(f"--out: cannot write '{out}': {error}") from error
    if has_no_decoder(product.model):
        plain(stderr=True).print(LATENTS, style="yellow")
    plain().print(f"{count} samples: {out}")


def draw(
    product: Trained,
    count: int,
    label: int | None = None,
    seed: int = 0,
    teacher: bool = False,
    prompts: Sequence[str] = (),
) -> torch.Tensor:
    """`count` samples as images [N, C, H, W]; the same noise and conditions for student and teacher."""
    classes = product.dataset.classes
    if label is not None and not 0 <= label < classes:
        raise UserError(f"--label: {label} is not a class; allowed: " + (f"0 to {classes - 1}" if classes else "none"))
    sampler = product.teacher_sampler if teacher else product.sampler
    if sampler is None:
        raise UserError("--teacher: this run is itself a teacher's")
    spoken = embedded(product, prompts) if prompts else None
    latents = []
    for index in torch.arange(count, device=product.device).split(AT_ONCE):
        noise, _ = inputs(product.dataset, Random.at(seed, index).stream("sample"))
        if spoken is None:
            cond = preview(product.dataset, index if label is None else torch.full_like(index, label))
        else:
            cond = {name: value[index.cpu() % len(prompts)] for name, value in spoken.items()}
        latents.append(sampler(noise, cond))
    return to_images(torch.cat(latents), product.model)


def embedded(product: Trained, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """The conditions [N, ...] of N prompts; the encoder is let go before anything is sampled."""
    encoder = None if product.teacher is None else text_encoder(product.teacher)
    if encoder is None:
        raise UserError("--prompt: the teacher takes no prompts")
    encoder.device = product.device
    made = encoder.encode(list(prompts))
    encoder.free()
    return made
