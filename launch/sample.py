"""distill sample: a picture of what a run has made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from distill.errors import UserError
from distill.random import Random
from launch.evaluate import WhichOption
from trainers.console import plain
from trainers.data.batches import inputs, preview
from trainers.pictures import grid, visible
from trainers.products import Product, load_product


def sample(
    folder: Annotated[Path, typer.Argument(help="run folder")],
    out: Annotated[Path | None, typer.Option(help="PNG to write; FOLDER/sample.png when left out")] = None,
    count: Annotated[int, typer.Option(help="images", min=1)] = 60,
    columns: Annotated[int, typer.Option(help="images in a row", min=1)] = 10,
    label: Annotated[
        int | None, typer.Option(help="one class for all; classes or prompts in turn when left out")
    ] = None,
    seed: Annotated[int, typer.Option(help="noise")] = 0,
    teacher: Annotated[bool, typer.Option("--teacher", help="the teacher at 35 evaluations instead")] = False,
    which: WhichOption = "last",
) -> None:
    """Write a grid of samples."""
    product = load_product(folder, which)
    images = draw(product, count, label, seed, teacher)
    out = out or folder / "sample.png"
    try:
        grid(images, columns).save(out)
    except (OSError, ValueError) as error:  # no such folder; an ending that names no format of pictures
        raise UserError(f"--out: cannot write '{out}': {error}") from error
    plain().print(f"{count} samples: {out}")


def draw(product: Product, count: int, label: int | None = None, seed: int = 0, teacher: bool = False) -> torch.Tensor:
    """`count` samples as images [N, C, H, W]; the same noise and conditions for student and teacher."""
    classes = product.dataset.classes
    if label is not None and not 0 <= label < classes:
        raise UserError(f"--label: {label} is not a class; allowed: " + (f"0 to {classes - 1}" if classes else "none"))
    index = torch.arange(count, device=product.device)
    noise, _ = inputs(product.dataset, Random.at(seed, index).stream("sample"))
    cond = preview(product.dataset, index if label is None else torch.full_like(index, label))
    sampler = product.teacher_sampler if teacher else product.sampler
    if sampler is None:
        raise UserError("--teacher: this run is itself a teacher's")
    return visible(sampler(noise, cond), product.model)
