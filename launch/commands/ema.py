"""distill ema: an average of another width, made of a run's snapshots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from distill.denoiser import Denoiser
from distill.errors import UserError
from trainers.checkpoints.checkpoint import AVERAGE, save_module
from trainers.checkpoints.posthoc_ema import plan, snapshots, synthesise
from trainers.io.atomic import atomic_folder
from trainers.io.console import plain
from trainers.loop import load_run
from trainers.recipe.run import Run
from trainers.runs.distillation import teacher_hash
from trainers.runs.load import POSTHOC, load_trained
from trainers.runs.teacher import write_teacher


def ema(
    folder: Annotated[Path, typer.Argument(help="run folder, its recipe with power_ema")],
    std: Annotated[float, typer.Option(help="relative width of the average")],
    images: Annotated[int | None, typer.Option(help="where it ends; the last snapshot when left out")] = None,
) -> None:
    """Make the power-function average of another width (EDM2): posthoc/STD, or posthoc/STD@IMAGES, for --which."""
    run = load_run(folder)
    if run.power_ema is None:
        raise UserError(f"'{folder}' has no snapshots: its recipe has no power_ema")
    found = snapshots(folder)
    if not found:
        raise UserError(f"'{folder}' has no snapshots yet: the first comes after {run.power_ema.snapshot_every} images")
    synthesis = plan(found, std, found[-1].images if images is None else images)
    product = load_trained(folder, merged=False)
    model = product.model
    with plain(stderr=True).status(f"{len(synthesis.parts)} snapshots"):
        synthesise(model, synthesis, product.frozen_names)
    which = f"posthoc/{std}" if images is None else f"posthoc/{std}@{images}"
    description = {
        "images": synthesis.images,
        "std": std,
        "left": synthesis.left,
        "teacher": teacher_hash(run.teacher) if isinstance(run, Run) else None,
        "snapshots": [{"images": s.images, "std": s.std, "coefficient": c} for s, c in synthesis.parts],
    }
    with atomic_folder(folder / which) as staging:
        save_module(model, staging / AVERAGE, product.frozen_names)
        if isinstance(model, Denoiser):
            write_teacher(model, staging)
        (staging / POSTHOC).write_text(json.dumps(description, indent=2) + "\n")
    plain().print(
        f"--which {which}: relative width {std} after {synthesis.images:,} images, of {len(synthesis.parts)} snapshots;"
        f" {synthesis.left:.2%} of its profile is missing"
    )
