"""distill teacher, distill train and distill resume: the commands that train."""

from __future__ import annotations

import os
import re
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import trainers
from distill.errors import UserError
from distill.user_code import naming
from launch.options import (
    Folder,
    Overrides,
    Oversubscribe,
    Processes,
    Recipe,
    TimeLimit,
    resolve_recipe,
    resolve_teacher_recipe,
)
from launch.processes import check_count, in_world, join_world, start_workers, starts_workers, world_size
from trainers.engine.stopping import STOP

if TYPE_CHECKING:
    from accelerate import Accelerator

    from trainers.recipe.run import Run
    from trainers.recipe.teacher_run import TeacherRun


def teacher(
    recipe: Recipe,
    overrides: Overrides = None,
    processes: Processes = None,
    oversubscribe: Oversubscribe = False,
    folder: Folder = None,
    time_limit: TimeLimit = None,
) -> None:
    """Train a teacher. A recipe for `distill train` then names the folder teacher/ in its run folder."""
    run = resolve_teacher_recipe(recipe, overrides)
    folder = folder or Path("runs") / run.name
    prepare(run, folder, processes, oversubscribe, time_limit, ["teacher", recipe, *(overrides or [])])
    accelerator = join_world(processes, run, folder)
    trainers.train(run, folder, accelerator=accelerator)
    tell_next(run, folder, accelerator)
    accelerator.end_training()  # collective: ends the process group, which `train` leaves to its caller


def train(
    recipe: Recipe,
    overrides: Overrides = None,
    processes: Processes = None,
    oversubscribe: Oversubscribe = False,
    folder: Folder = None,
    tiny: Annotated[
        bool,
        typer.Option("--tiny", help="Train 4 updates with a tiny teacher of the same kind, which gets random weights."),
    ] = False,
    time_limit: TimeLimit = None,
) -> None:
    """Distil a teacher into a one-step generator."""
    if tiny:
        folder = folder or Path("runs") / f"{Path(recipe).stem}_tiny"
    run = resolve_recipe(recipe, overrides, folder if tiny else None)
    folder = folder or Path("runs") / run.name
    more = ["--tiny"] if tiny else []
    prepare(run, folder, processes, oversubscribe, time_limit, ["train", recipe, *(overrides or []), *more])
    accelerator = join_world(processes, run, folder)
    trainers.train(run, folder, accelerator=accelerator)
    tell_next(run, folder, accelerator)
    accelerator.end_training()  # collective: ends the process group, which `train` leaves to its caller


def prepare(
    run: Run | TeacherRun,
    folder: Path,
    processes: int | None,
    oversubscribe: bool,
    time_limit: str | None,
    command: list[str],
) -> None:
    """Start the workers of a new run, if several processes are asked for. This process then exits with them.

    Args:
        run: The recipe.
        folder: The run folder.
        processes: The number of processes. None for one, or for those that a launcher started.
        oversubscribe: Whether processes may share cores.
        time_limit: The option --time-limit.
        command: The command for the workers.

    Raises:
        UserError: The recipe cannot be trained, the folder holds a run already, or this machine has too few cores or
            GPUs.
    """
    limit_time(time_limit)
    count = processes or world_size()
    if starts_workers(count):
        check_count(count, oversubscribe)
        from trainers.loop import refuse_used
        from trainers.runs.open import open_run

        open_run(run, count, weights=False)  # all mistakes that can be known are told before a worker starts
        refuse_used(folder)
        start_workers(count, [*command, "--folder", str(folder), *process_options(count, time_limit)])


def resume(
    folder: Annotated[Path, typer.Argument(help="The run folder.")],
    overrides: Overrides = None,
    processes: Processes = None,
    oversubscribe: Oversubscribe = False,
    allow: Annotated[
        list[str] | None, typer.Option(help="A key whose change you accept although it may change the training.")
    ] = None,
    time_limit: TimeLimit = None,
) -> None:
    """Continue a run from its newest valid checkpoint, on as many processes as before."""
    from trainers.api import first_look
    from trainers.checkpoints.checkpoint import newest_state
    from trainers.io.console import plain
    from trainers.recipe.load import build_experiment, load_run, resolve_paths
    from trainers.recipe.strict_yaml import dump, override
    from trainers.runs.open import open_run

    limit_time(time_limit)
    run = load_run(folder)
    if overrides:
        with naming(None, folder), naming(override({}, overrides), Path.cwd()):
            run = resolve_paths(build_experiment(override(dump(run), overrides), str(folder)))
    count = world_size()
    if os.environ.get("RANK", "0") == "0":  # one of several processes reads the checkpoint and prints the note
        # Of several processes that others started all look, in `trainers.resume`: they would wait for one that ends.
        state = newest_state(folder / "checkpoints") if in_world() else first_look(folder, run, allow or [])
        before = count if state is None else state["processes"]
        count = processes or (count if in_world() else before)
        if starts_workers(count):
            check_count(count, oversubscribe, run if processes is None else None)
            open_run(run, count, weights=False, fresh=False)
            options = [option for key in allow or [] for option in ("--allow", key)]
            options += process_options(count, time_limit)
            start_workers(count, ["resume", str(folder), *(overrides or []), *options])
        if count != before:
            note = f"{count} processes in place of {before}: the same samples, summed in another order"
            plain(stderr=True).print(note)
    accelerator = join_world(processes, run, folder)
    trainers.resume(folder, allow=allow or [], accelerator=accelerator, recipe=run)
    tell_next(run, folder, accelerator)
    accelerator.end_training()  # collective: ends the process group, which `resume` leaves to its caller


def tell_next(run: Run | TeacherRun, folder: Path, accelerator: Accelerator) -> None:
    """Print which commands come after a run that has ended, on the main process."""
    from trainers.io.console import plain

    place = shlex.quote(str(folder))
    commands = [f"`distill {command} {place}`" for command in ("report", "evaluate", "sample")]
    if run.trains == "generator":
        commands.append(f"`distill export {place}`")
    else:
        commands.append(f"a recipe with `teacher: {folder / 'teacher'}`")
    console = plain(stderr=True, quiet=not accelerator.is_main_process)
    console.print(f"{run.name}: done; next {', '.join(commands[:-1])} or {commands[-1]}")


def limit_time(given: str | None) -> None:
    """Make the run stop before the time of `--time-limit`, and before the end of its Slurm job.

    Args:
        given: [days-]hours:minutes:seconds. None for no limit but Slurm's.

    Raises:
        UserError: `given` has another form.
    """
    if given is not None:
        found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", given)
        if found is None:
            raise UserError(f"--time-limit: must be [days-]hours:minutes:seconds, such as 3:50:00, got {given!r}")
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        STOP.limit(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    if end := os.environ.get("SLURM_JOB_END_TIME"):
        STOP.limit(float(end) - time.time())


def process_options(processes: int, time_limit: str | None) -> list[str]:
    """Return the options for the workers."""
    return ["--processes", str(processes), *(["--time-limit", time_limit] if time_limit else [])]
