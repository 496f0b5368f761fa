"""The arguments and options that several commands share, and the recipes that they name."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from distill.errors import UserError

if TYPE_CHECKING:
    from trainers.recipe.run import Experiment, Run
    from trainers.recipe.teacher_run import TeacherRun


def complete_recipe(beginning: str) -> list[str]:
    """Return the names of the shipped recipes with this beginning, for the completion of a shell."""
    from trainers.recipe.shipped import shipped_recipes

    return [name for name in shipped_recipes() if name.startswith(beginning)]


Recipe = Annotated[
    str,
    typer.Argument(
        help="A shipped recipe (see `distill recipes`), a YAML file, or - for the changes alone.",
        autocompletion=complete_recipe,
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes to the recipe, such as images=10000 or objective.alpha=1.0.")
]
Moved = Annotated[
    list[str] | None,
    typer.Argument(help="Other values of the settings, such as data.path=FOLDER or precision=bfloat16."),
]
Processes = Annotated[
    int | None,
    typer.Option(help="The processes to start, with one GPU each, or on the CPU without GPUs.", min=1),
]
Oversubscribe = Annotated[
    bool, typer.Option("--oversubscribe", help="Start more processes than this machine has cores. Not for GPUs.")
]
TimeLimit = Annotated[
    str | None,
    typer.Option(help="[days-]hours:minutes:seconds within which the run saves and exits with code 75."),
]
Folder = Annotated[Path | None, typer.Option(help="The run folder. Default: runs/NAME.")]
SamplerName = Annotated[
    str | None,
    typer.Option(help="The teacher's sampler, by name or as '{name: ddim, eta: 1}'. Default: the recipe's."),
]
Evaluations = Annotated[
    int | None, typer.Option(help="The teacher's evaluations for each sample. Default: the sampler's.", min=1)
]
Cfg = Annotated[float | None, typer.Option(help="The guidance scale in D_null + scale (D - D_null).")]
CfgInterval = Annotated[
    tuple[float, float] | None,
    typer.Option(help="The noise-to-signal ratios, low and high, between which guidance is at work."),
]
CfgRescale = Annotated[
    float | None, typer.Option(help="The share, 0 to 1, at which guidance keeps the output's standard deviation.")
]
NegativePrompt = Annotated[
    str | None, typer.Option(help="The prompt that guidance points away from. Default: the run's or pipeline's.")
]
Which = Annotated[
    str,
    typer.Option(help="The weights: last (newest checkpoint), best (smallest distance), or posthoc/NAME."),
]


def resolve_recipe(recipe: str, overrides: list[str] | None = None, tiny: Path | None = None) -> Run:
    """Return the distillation that a recipe describes. DISTILL_CACHE replaces the default folder of the cache.

    Args:
        recipe: The name of a shipped recipe, a YAML file, or `-` for an empty recipe.
        overrides: Changes as text: key=value.
        tiny: The run folder of the recipe's tiny form. None for the recipe as it is.

    Raises:
        UserError: The recipe is missing or wrong, or it trains a teacher.
    """
    from trainers.recipe.load import resolve
    from trainers.recipe.run import Run

    run = resolve(_named(recipe), overrides or [], tiny=tiny)
    if not isinstance(run, Run):
        raise UserError(f"{recipe}: this recipe is for `distill teacher`")
    return cast("Run", inception_weights(dataclasses.replace(run, cache=cache_folder(run.cache))))


def resolve_teacher_recipe(recipe: str, overrides: list[str] | None = None) -> TeacherRun:
    """Return the training of a teacher that a recipe describes.

    Args:
        recipe: The name of a shipped recipe, a YAML file, or `-` for an empty recipe.
        overrides: Changes as text: key=value.

    Raises:
        UserError: The recipe is missing or wrong, or it distils a teacher.
    """
    from trainers.recipe.load import resolve
    from trainers.recipe.teacher_run import TeacherRun

    run = resolve(_named(recipe), overrides or [])
    if not isinstance(run, TeacherRun):
        raise UserError(f"{recipe}: this recipe is for `distill train`")
    return cast("TeacherRun", inception_weights(dataclasses.replace(run, cache=cache_folder(run.cache))))


def inception_weights(run: Experiment) -> Any:
    """Return a recipe with the file of the Inception weights that DISTILL_INCEPTION names, if the recipe names none."""
    from distill.metrics.features import InceptionFeatures

    features, file = run.evaluation.features, inception_file()
    if file is None or not isinstance(features, InceptionFeatures) or features.weights is not None:
        return run
    named = dataclasses.replace(features, weights=file)
    return dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, features=named))


def with_environment(run: Experiment) -> Any:
    """Return a recipe that was loaded, with the cache and the Inception weights that the environment names."""
    return inception_weights(dataclasses.replace(run, cache=cache_folder(run.cache)))


def inception_file() -> str | None:
    """Return the file of the Inception weights that DISTILL_INCEPTION names."""
    file = os.environ.get("DISTILL_INCEPTION")
    return None if file is None else os.path.realpath(file)


def _named(recipe: str) -> str | dict[str, Any]:
    """Return the recipe to begin with, which is empty for `-`."""
    return {} if recipe == "-" else recipe


def cache_folder(given: str | None = None) -> str:
    """Return the folder of embeddings and latents: the given one, or DISTILL_CACHE in place of the default."""
    from trainers.data.cache import DEFAULT_CACHE

    cache = os.environ.get("DISTILL_CACHE", DEFAULT_CACHE) if given in (None, DEFAULT_CACHE) else given
    return str(cache) if str(cache).startswith("~") else os.path.realpath(str(cache))
