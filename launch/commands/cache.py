"""distill cache: what a run reads in place of its encoders, computed in advance."""

from __future__ import annotations

import torch

from distill.errors import UserError
from launch.commands.train import Overrides, Recipe, resolve
from trainers.data.encode import encode_dataset
from trainers.io.console import plain
from trainers.recipe.run import Run
from trainers.runs.distillation import check_objective, load_teacher


def cache(recipe: Recipe, overrides: Overrides = None) -> None:
    """Compute the embeddings and latents of a recipe. `train` does so too; several calls at once share the work."""
    run = resolve(recipe, overrides or [])
    if not isinstance(run, Run):
        raise UserError(f"{recipe}: this recipe is for `distill teacher`, which reads images as they are")
    dataset = run.data.load()
    teacher = load_teacher(run, dataset)
    check_objective(run, dataset, teacher)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ready = encode_dataset(run, dataset, teacher, device, real="real" in run.objective.needs)
    prompts, latents = len(set(dataset.prompts or ())), ready.count if ready.read and teacher.latents else 0
    plain().print(f"{prompts:,} prompts and {latents:,} latents in {run.cache}")
