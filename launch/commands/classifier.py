"""distill classifier: what evaluations measure with, and rewards ask."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator

from distill.errors import UserError
from launch.commands.recipes import find_recipe
from launch.commands.train import Folder, Overrides, Recipe
from trainers.io.atomic import atomic_folder
from trainers.io.console import plain
from trainers.recipe.strict_yaml import build, load_yaml, override
from trainers.runs.classifier import ClassifierRun, train_classifier


def classifier(recipe: Recipe, overrides: Overrides = None, folder: Folder = None) -> None:
    """Train a small classifier of a labelled data set, for `evaluation.classifier` of a recipe."""
    settings = override(load_yaml(find_recipe(recipe)), overrides or [])
    if settings.get("trains") != "classifier":
        raise UserError(f"{recipe}: this recipe is not for `distill classifier`; one that is says `trains: classifier`")
    run = build(ClassifierRun, settings, recipe)
    folder = folder or Path("runs") / run.name
    if folder.exists():
        raise UserError(f"'{folder}' exists already: --folder or name= writes another")
    console, dataset = plain(stderr=True), run.data.load()

    def report(images: int, accuracy: float) -> None:
        console.print(f"{run.name}: {images:,} of {run.images:,} images, {accuracy:.2%} right of those held out")

    trained = train_classifier(run, dataset, Accelerator(cpu=not torch.cuda.is_available()), report)
    with atomic_folder(folder) as staging:
        trained.save(staging)
    console.print(f"classifier-{trained.hash}, {trained.accuracy:.2%} right of those held out: {folder}")
