"""What a run has made, loaded for use: the averaged network of a checkpoint, with its teacher and data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.generator import Generator
from trainers import checkpoint
from trainers.data import Dataset
from trainers.distillation import load_teacher, one_step_generator
from trainers.loop import load_run
from trainers.run import Run, TeacherRun
from trainers.session import Sampler, configure, sampler_of
from trainers.teacher import fresh_denoiser

Which = Literal["last", "best"]


@dataclass(frozen=True)
class Product:
    """A one-step `model` (Generator) or a teacher (Denoiser) after `images` images, and how to sample it."""

    run: Run | TeacherRun
    model: Generator | Denoiser
    sampler: Sampler
    dataset: Dataset
    images: int
    teacher: Denoiser | None
    device: torch.device

    @property
    def teacher_sampler(self) -> Sampler | None:
        """The teacher at 35 evaluations; None when the product is itself a teacher."""
        return None if self.teacher is None else sampler_of(self.teacher, self.run)


def load_product(folder: Path, which: Which = "last") -> Product:
    """The newest valid checkpoint's average, or the best's; raises UserError when there is none."""
    run = load_run(folder)
    source, images = _source(folder, which)
    dataset = run.data.load()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(run, Run):
        teacher = load_teacher(run, dataset)
        model: Generator | Denoiser = one_step_generator(load_teacher(run, dataset), run)
    else:
        teacher, model = None, configure(fresh_denoiser(run, dataset), run)
    checkpoint.load_average(source, model)
    for module in (model, teacher):
        if module is not None:
            module.to(device).requires_grad_(False).eval()
    return Product(run, model, sampler_of(model, run), dataset, images, teacher, device)


def _source(folder: Path, which: Which) -> tuple[Path, int]:
    if which == "best":
        metrics = folder / "best" / "metrics.json"
        if not metrics.is_file():
            raise UserError(f"'{folder}' has no best/ yet: set evaluation.every in the recipe")
        return folder / "best", int(json.loads(metrics.read_text())["images"])
    found, _ = checkpoint.newest(folder / "checkpoints")
    return found, int(checkpoint.read_state(found)["images"])
