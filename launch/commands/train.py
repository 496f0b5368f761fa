"""distill teacher, distill train, distill resume."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from distill.errors import UserError
from launch.commands.recipes import find_recipe
from launch.processes import in_world, join_world, launch_here, relaunch, world_size
from trainers.checkpoints import checkpoint
from trainers.data.cache import HOME
from trainers.engine.stopping import STOP
from trainers.evaluation import load_extractor
from trainers.hooks.trackers import check_trackers
from trainers.io.console import plain
from trainers.loop import build_experiment, fit, load_run
from trainers.recipe.run import Run, TeacherRun
from trainers.recipe.strict_yaml import diff, dump, load_yaml, override
from trainers.recipe.tiny import shrink
from trainers.runs.distillation import check_objective, load_pairs, load_start, load_teacher, one_step_generator
from trainers.runs.teacher import fresh_denoiser

Recipe = Annotated[str, typer.Argument(help="a shipped recipe (see `distill recipes`) or a YAML file")]
Overrides = Annotated[list[str] | None, typer.Argument(help="changes to the recipe: key=value, objective.alpha=1.0")]
Processes = Annotated[int | None, typer.Option(help="processes (GPUs, or CPU processes where there is none)", min=1)]
TimeLimit = Annotated[
    str | None, typer.Option(help="[days-]hours:minutes:seconds after which the run has saved and ended (exit code 75)")
]
Folder = Annotated[Path | None, typer.Option(help="run folder; runs/NAME when left out")]


def teacher(
    recipe: Recipe,
    overrides: Overrides = None,
    processes: Processes = None,
    folder: Folder = None,
    time_limit: TimeLimit = None,
) -> None:
    """Train a teacher where none exists; the run folder's teacher/ is what `train` takes."""
    _start(recipe, overrides or [], processes, folder, TeacherRun, time_limit)


def train(
    recipe: Recipe,
    overrides: Overrides = None,
    processes: Processes = None,
    folder: Folder = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="4 updates of a tiny random teacher of the same kind, made on the spot")
    ] = False,
    time_limit: TimeLimit = None,
) -> None:
    """Distil a teacher into a one-step generator."""
    _start(recipe, overrides or [], processes, folder, Run, time_limit, tiny)


def resume(
    folder: Annotated[Path, typer.Argument(help="run folder")],
    overrides: Overrides = None,
    processes: Processes = None,
    allow: Annotated[list[str] | None, typer.Option(help="a key whose change may change what is trained")] = None,
    time_limit: TimeLimit = None,
) -> None:
    """Continue a run from its newest valid checkpoint, on as many processes as before, with changes to its recipe."""
    limit_time(time_limit)
    run = load_run(folder)
    if overrides:
        run = resolved(build_experiment(override(dump(run), overrides), str(folder)))
    count = world_size()
    if os.environ.get("RANK", "0") == "0":  # of several processes the first looks
        state = checkpoint.read_state(checkpoint.newest(folder / "checkpoints")[0])
        count = processes or (count if in_world() else state["processes"])
        notes = accepted(state, run, allow or [])
        check(run, count)
        if count != state["processes"]:
            notes.append(f"{count} processes, {state['processes']} before: the same samples, another order of sums")
        for note in notes if not launch_here(count) else []:
            plain(stderr=True).print(note)
    if launch_here(count):
        options = [option for key in allow or [] for option in ("--allow", key)]
        relaunch(count, ["resume", str(folder), *(overrides or []), *options, *_common(count, time_limit)])
    fit(run, folder, join_world(processes, run, folder), resume=True)


FREE = {"name", "images", "keep", "tracking", "evaluation", "max_skipped"} | {"teacher", "start", "cache"}
FREE |= {"pairs.folder", "data.path"}  # paths: what is there is compared by its hash


def accepted(state: dict[str, Any], run: Run | TeacherRun, allow: list[str]) -> list[str]:
    """What changed in the recipe since the checkpoint with this `state`, a line for each key.

    Raises UserError where a change that may change what is trained is not under a key of `allow`.
    """
    changes = {line.partition(":")[0]: line for line in diff(state["recipe"], dump(run))}
    free = FREE | set(allow)
    refused = {
        key: line
        for key, line in changes.items()
        if not key.endswith("_every") and not any(key == one or key.startswith(f"{one}.") for one in free)
    }
    if refused:
        options = " ".join(f"--allow {key}" for key in refused)
        raise UserError(f"{', '.join(refused.values())}: this would change what is trained; {options} accepts it")
    return [f"changed since the checkpoint: {line}" for line in changes.values()]


def limit_time(given: str | None) -> None:
    """Let the run stop before the time that `--time-limit` says, and before the end of its Slurm job."""
    if given is not None:
        found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", given)
        if found is None:
            raise UserError(f"--time-limit: must be [days-]hours:minutes:seconds, such as 3:50:00, got {given!r}")
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        STOP.limit(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    if end := os.environ.get("SLURM_JOB_END_TIME"):
        STOP.limit(float(end) - time.time())


def _common(processes: int, time_limit: str | None) -> list[str]:
    """Options for the processes that are started."""
    return ["--processes", str(processes), *(["--time-limit", time_limit] if time_limit else [])]


def _start(
    recipe: str,
    overrides: list[str],
    processes: int | None,
    folder: Path | None,
    kind: type[Run] | type[TeacherRun],
    time_limit: str | None = None,
    tiny: bool = False,
) -> None:
    limit_time(time_limit)
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
        options = ["--folder", str(folder), *_common(count, time_limit), *(["--tiny"] if tiny else [])]
        relaunch(count, [command, recipe, *overrides, *options])
    fit(run, folder, join_world(processes, run, folder))


def resolve(recipe: str, overrides: list[str], tiny: Path | None = None) -> Run | TeacherRun:
    """The experiment of a recipe with overrides, the folders it names as absolute paths; as `--tiny` runs it in the
    folder `tiny`, if given."""
    settings = load_yaml(find_recipe(recipe))
    changes = settings.pop("tiny", None)
    if tiny is not None:
        settings = shrink(settings, changes, tiny, recipe)
    return resolved(build_experiment(override(settings, overrides), recipe))


def resolved(run: Run | TeacherRun) -> Run | TeacherRun:
    """`run`, the folders that it names as absolute paths."""
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
