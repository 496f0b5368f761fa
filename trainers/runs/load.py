"""What a run has made, loaded for use: the averaged network of a checkpoint, with its teacher and data."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distill import lora
from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.generator import Generator
from trainers.checkpoints import checkpoint
from trainers.data import Dataset
from trainers.data.encode import encode_dataset
from trainers.engine.player import frozen
from trainers.engine.session import Sampler, make_sampler, set_precision
from trainers.io.console import plain
from trainers.loop import load_run
from trainers.recipe.run import Run, TeacherRun
from trainers.runs.distillation import attach_adapters, load_teacher, one_step_generator, teacher_hash
from trainers.runs.teacher import fresh_denoiser

POSTHOC = "posthoc.json"  # beside the weights of an average that was made of snapshots


@dataclass(frozen=True)
class Trained:
    """A one-step `model` (Generator) or a teacher (Denoiser) after `images` images, and how to sample it."""

    run: Run | TeacherRun
    model: Generator | Denoiser
    sampler: Sampler
    dataset: Dataset
    source: Dataset  # as it was opened, see Session
    images: int
    average: str  # which one the weights are, in words
    teacher: Denoiser | None
    device: torch.device
    frozen_names: frozenset[str] = frozenset()  # parameters of the model that did not train, which files lack

    @property
    def teacher_sampler(self) -> Sampler | None:
        """The teacher at 35 evaluations; None when the product is itself a teacher."""
        return None if self.teacher is None else make_sampler(self.teacher, self.run)


def load_trained(folder: Path, which: str = "last", merged: bool = True) -> Trained:
    """The newest valid checkpoint's average ("last"), the "best"'s, or one that `distill ema` has made ("posthoc/0.1").

    Adapters are `merged` into their weights, or kept as in the file. Raises UserError when there is none.
    """
    run = load_run(folder)
    source, description = _source(folder, which)
    if isinstance(run, Run) and description["teacher"] != teacher_hash(run.teacher):
        raise UserError(f"'{folder}' was trained from another teacher than is now in '{run.teacher}'")
    dataset = source_data = run.data.load()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(run, Run):
        teacher = load_teacher(run, dataset)
        dataset = encode_dataset(run, dataset, teacher, device, real=False)
        denoiser = copy.deepcopy(teacher)
        attach_adapters(denoiser, run.generator)
        model: Generator | Denoiser = one_step_generator(denoiser, run)
    else:
        teacher, model = None, set_precision(fresh_denoiser(run, dataset), run)
    frozen_names = frozen(model)
    checkpoint.load_average(source, model, frozen_names)
    if merged and isinstance(run, Run) and run.generator.lora is not None:
        lora.merge(model)
    for module in (model, teacher):
        if module is not None:
            module.to(device).requires_grad_(False).eval()
    images, std = description["images"], description.get("std")
    average = "ema of the recipe" if std is None else f"power function of relative width {std} (arXiv:2312.02696)"
    return Trained(
        run, model, make_sampler(model, run), dataset, source_data, images, average, teacher, device, frozen_names
    )


def _source(folder: Path, which: str) -> tuple[Path, dict[str, Any]]:
    if which == "best":
        metrics = folder / "best" / "metrics.json"
        if not metrics.is_file():
            raise UserError(f"'{folder}' has no best/ yet: set evaluation.every in the recipe")
        return folder / "best", json.loads(metrics.read_text())
    if which != "last":
        made = {f"posthoc/{file.parent.name}": file for file in sorted(folder.glob(f"posthoc/[0-9]*/{POSTHOC}"))}
        if which not in made:
            raise UserError(f"which: '{folder}' has no '{which}'; allowed: {', '.join(['last', 'best', *made])}")
        return made[which].parent, json.loads(made[which].read_text())
    found, skipped = checkpoint.newest(folder / "checkpoints")
    for line in skipped:
        plain(stderr=True).print(line, style="yellow")
    return found, checkpoint.read_state(found)
