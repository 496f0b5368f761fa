"""distill teacher, distill train, distill resume."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import typer

from distill.errors import UserError
from launch.processes import in_world, join_world, launch_here, relaunch, world_size
from launch.recipes import find_recipe
from launch.tiny import shrink
from trainers import checkpoint
from trainers.config import load_yaml, override
from trainers.console import plain
from trainers.data.cache import HOME
from trainers.distillation import check_objective, load_pairs, load_start, load_teacher, one_step_generator
from trainers.evaluation import load_extractor
from trainers.loop import build_experiment, fit, load_run
from trainers.run import Run, TeacherRun
from trainers.teacher import fresh_denoiser
from trainers.tracking import check_trackers

Recipe = Annotated[str, typer.Argument(help="a shipped recipe (see `distill recipes`) or a YAML file")]
Overrides = Annotated[list[str] | None, typer.Argument(help="changes to the recipe: key=value, objective.alpha=1.0")]
Processes = Annotated[int | None, typer.Option(help="processes (GPUs, or CPU processes where there is none)", min=1)]
Folder = Annotated[Path | None, typer.Option(help="run folder; runs/NAME when left out")]


def teacher(recipe: Recipe, overrides: Overrides = None, processes: Processes = None, folder: Folder = None) -> None:
    """Train a teacher where none exists; the run folder's teacher/ is what `train` takes."""
    _start(recipe, overrides or [], processes, folder, TeacherRun)


def train(
    recipe: Recipe,
    overrides: Overrides = None,
    processes: Processes = None,
    folder: Folder = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="4 updates of a tiny random teacher of the same kind, made on the spot")
    ] = False,
) -> None:
    """Distil a teacher into a one-step generator."""
    _start(recipe, overrides or [], processes, folder, Run, tiny)


def resume(
    folder: Annotated[Path, typer.Argument(help="run folder")],
    processes: Processes = None,
) -> None:
    """Continue a run from its newest valid checkpoint, on as many processes as before."""
    run = load_run(folder)
    found, _ = checkpoint.newest(folder / "checkpoints")
    before = checkpoint.read_state(found)["processes"]
    count = processes or (world_size() if in_world() else before)
    check(run, count)
    if count != before:
        plain(stderr=True).print(f"{count} processes, {before} before: the same samples, another order of sums")
    if launch_here(count):
        relaunch(count, ["resume", str(folder), "--processes", str(count)])
    fit(run, folder, join_world(processes, run, folder), resume=True)


def _start(
    recipe: str,
    overrides: list[str],
    processes: int | None,
    folder: Path | None,
    kind: type[Run] | type[TeacherRun],
    tiny: bool = False,
) -> None:
    if tiny:
        folder = folder or Path("runs") / f"{Path(recipe).stem}_tiny"
    run = resolve(recipe, overrides, folder if tiny else None)
    if not isinstance(run, kind):
        other = "teacher" if isinstance(run, TeacherRun) else "train"
        raise UserError(f"{recipe}: this recipe is for `distill {other}`")
    folder = folder or Path("runs") / run.name
    count = processes or world_size()
    if os.environ.get("RANK", "0") == "0":  # of several processes the first looks, before any writes
        check(run, count, fresh=True)
        check_fresh(folder)
    if launch_here(count):
        command = "teacher" if isinstance(run, TeacherRun) else "train"
        options = ["--processes", str(count), "--folder", str(folder), *(["--tiny"] if tiny else [])]
        relaunch(count, [command, recipe, *overrides, *options])
    fit(run, folder, join_world(processes, run, folder))


def resolve(recipe: str, overrides: list[str], tiny: Path | None = None) -> Run | TeacherRun:
    """The experiment of a recipe with overrides, the folders it names as absolute paths; as `--tiny` runs it in the
    folder `tiny`, if given."""
    settings = load_yaml(find_recipe(recipe))
    changes = settings.pop("tiny", None)
    if tiny is not None:
        settings = shrink(settings, changes, tiny, recipe)
    run = build_experiment(override(settings, overrides), recipe)
    if classifier := run.evaluation.classifier:
        evaluation = dataclasses.replace(run.evaluation, classifier=str(Path(classifier).resolve()))
        run = dataclasses.replace(run, evaluation=evaluation)
    if not isinstance(run, Run):
        return run
    start = None if run.start is None else str(Path(run.start).resolve())
    pairs = run.pairs and dataclasses.replace(run.pairs, folder=str(Path(run.pairs.folder).resolve()))
    teacher, cache = str(Path(run.teacher).resolve()), cache_folder(run.cache)
    return dataclasses.replace(run, teacher=teacher, start=start, pairs=pairs, cache=cache)


def cache_folder(given: str = HOME) -> str:
    """The folder of embeddings and latents: as given, or in place of the default what DISTILL_CACHE says."""
    cache = os.environ.get("DISTILL_CACHE", HOME) if given == HOME else given
    return cache if cache.startswith("~") else str(Path(cache).resolve())


def check(run: Run | TeacherRun, processes: int, fresh: bool = False) -> None:
    """Raise UserError for everything that can be known to fail, before processes start or anything trains.

    Only a `fresh` run needs what it starts from.
    """
    run.check_world(processes)
    check_trackers(run)
    dataset = run.data.load()
    load_extractor(dataset, run.evaluation)
    if isinstance(run, Run):
        teacher = load_teacher(run, dataset)
        check_objective(run, dataset, teacher)
        generator = one_step_generator(teacher, run)
        if fresh and run.start is not None:
            load_start(run.start, run, generator)
        load_pairs(run, teacher)
    else:
        fresh_denoiser(run, dataset)


def check_fresh(folder: Path) -> None:
    """Raise UserError when `folder` holds a run already."""
    if checkpoint.folders(folder / "checkpoints") or any((folder / name).exists() for name in ("log.jsonl", "best")):
        raise UserError(
            f"'{folder}' holds a run already: `distill resume {folder}` continues it, --folder or name= starts another"
        )
