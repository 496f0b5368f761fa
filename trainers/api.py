"""The functions for programs that train, resume and load runs."""

import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from rich.console import Console

from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.user_code import naming, trusted, trusting
from trainers.checkpoints import checkpoint
from trainers.data import Dataset, GivenData
from trainers.engine.collectives import on_main_process
from trainers.engine.player import OptimizerFactory
from trainers.engine.stopping import STOP
from trainers.engine.world import start_accelerator
from trainers.hooks.hook import Hook
from trainers.loop import fit, refuse_used
from trainers.recipe.changes import accepted_changes
from trainers.recipe.load import load_run, resolve
from trainers.recipe.run import Run
from trainers.recipe.strict_yaml import dump
from trainers.recipe.teacher_run import TeacherRun
from trainers.runs.load import Trained, find_trained, load_trained
from trainers.runs.open import Objects, open_run

GIVEN_TEACHER = "object"
"""The `teacher` of a run whose teacher the caller gave as an object."""


def train(
    recipe: str | Path | Mapping[str, Any] | Run | TeacherRun,
    folder: str | Path | None = None,
    processes: int = 1,
    *,
    oversubscribe: bool = False,
    hooks: Sequence[Hook] = (),
    optimizer: OptimizerFactory | Mapping[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    trust_code: bool | Collection[str] = False,
    **overrides: Any,
) -> Trained:
    """Train a run from its first image to its last.

    The function works in a script, in a notebook, and on every rank of a program that `accelerate launch` or `torchrun`
    started.

    Args:
        recipe: The name of a shipped recipe, a YAML file, or a mapping of a recipe's keys.
        folder: The run folder. None for `runs/NAME`.
        processes: The number of processes to start on this machine. Leave it at 1 in a program that a launcher started.
        oversubscribe: Whether to start more processes than this machine has cores.
        hooks: Hooks of your own, which are called beside the run's.
        optimizer: (name of the player, its named parameters) -> its optimizer, in place of the recipe's. A mapping
            changes the recipe's key `optimizer`, as an override does.
        accelerator: An Accelerator of your own. None to start one.
        trust_code: Whether the code that files name may run, or the SHA-256 of the files that may (distill.user_code).
            A recipe of yours needs no consent for the classes that it names.
        **overrides: Changes to the recipe by key: `images=1000`, `generator={"lr": 1e-4}`. A value may be an object:
            a Denoiser for `teacher`, a Dataset for `data`, an Objective for `objective`. run.yaml lists the objects
            that it cannot hold under the key `objects`, and `resume` needs these again.

    Returns:
        The trained model with its teacher. Their weights are read when they are first used.

    Raises:
        UserError: Something in the recipe is wrong or missing, or the folder holds a run already.
        Stopped: The process was told to stop. The state is saved.
    """
    objects, changes = take_objects(overrides, hooks, optimizer)
    with trusting(trust_code):
        run = with_objects(resolve(recipe, changes=changes), objects)
        folder = Path(folder or Path("runs") / run.name)
        if processes > 1:
            command = "teacher" if isinstance(run, TeacherRun) else "train"
            options = ["--processes", str(processes), *(["--oversubscribe"] if oversubscribe else [])]
            start_processes(command, run, folder, processes, objects, options)
            return find_trained(folder)
        with STOP.listening():
            accelerator = accelerator or start_accelerator(run, folder)
            # One rank looks, before any other can have written to the folder.
            on_main_process(accelerator, partial(refuse_used, folder))
            fit(open_run(run, accelerator.num_processes, objects=objects), folder, accelerator)
        return find_trained(folder, objects=objects)


def resume(
    folder: str | Path,
    processes: int | None = None,
    *,
    oversubscribe: bool = False,
    allow: Iterable[str] = (),
    recipe: Run | TeacherRun | None = None,
    hooks: Sequence[Hook] = (),
    optimizer: OptimizerFactory | Mapping[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    trust_code: bool | Collection[str] = False,
    **overrides: Any,
) -> Trained:
    """Continue a run from its newest valid checkpoint to its last image.

    Args:
        folder: The run folder.
        processes: The number of processes to start on this machine. None for as many as before.
        oversubscribe: As for `train`.
        allow: The keys whose change you accept although it may change the training.
        recipe: The experiment to continue with. None for the run.yaml of the folder.
        hooks: As for `train`. Hooks and other objects must be given again.
        optimizer: As for `train`.
        accelerator: As for `train`.
        trust_code: As for `train`, also for the classes that run.yaml names.
        **overrides: Changes to the recipe, and objects, as for `train`.

    Returns:
        The trained model with its teacher, as for `train`.

    Raises:
        UserError: There is no valid checkpoint, it belongs to another run, or a change that is not accepted may change
            the training.
        Stopped: The process was told to stop. The state is saved.
    """
    folder, allow = Path(folder), tuple(allow)
    objects, changes = take_objects(overrides, hooks, optimizer)
    with trusting(trust_code):
        with naming(None, folder):
            run = resolve(recipe or load_run(folder), changes=changes)
        state = first_look(folder, run, allow)
        options = ["--oversubscribe"] if oversubscribe else []
        if processes is not None:
            options += ["--processes", str(processes)]
        elif accelerator is None and PartialState().num_processes == 1:
            processes = 1 if state is None else state["processes"]
        if processes is not None and processes > 1:
            start_processes("resume", run, folder, processes, objects, options, allow)
            return find_trained(folder)
        with STOP.listening():
            accelerator = accelerator or start_accelerator(run, folder)
            opened = open_run(run, accelerator.num_processes, fresh=False, objects=objects)
            fit(opened, folder, accelerator, allow)
        return find_trained(folder, objects=objects)


def first_look(folder: Path, run: Run | TeacherRun, allow: Iterable[str] = ()) -> dict[str, Any] | None:
    """Return the content of state.json of the newest checkpoint, before anything expensive, or None without one.

    Its hashes are verified only where the run is shorter than it. `fit` looks again, at the checkpoint that is valid.

    Args:
        folder: The run folder.
        run: The experiment that resumes.
        allow: The keys whose change the user accepts.

    Raises:
        UserError: A change is not accepted, or `images` is below the images that are done.
    """
    state = checkpoint.newest_state(folder / "checkpoints")
    if state is not None and run.images < state["images"]:
        state = checkpoint.read_state(checkpoint.newest(folder / "checkpoints")[0])
    if state is not None:
        accepted_changes(state, run, folder, allow)
    return state


def load(
    folder: str | Path,
    which: str = "last",
    *,
    teacher: Denoiser | str | Path | None = None,
    data: Dataset | Mapping[str, Any] | None = None,
    trust_code: bool | Collection[str] = False,
    **overrides: Any,
) -> Trained:
    """Load the trained model of a run.

    Args:
        folder: The run folder.
        which: The weights: "last" for the newest valid checkpoint, "best" for the smallest Frechet distance, or
            "posthoc/NAME" for an average that `distill ema` has made.
        teacher: The teacher of a run whose teacher was given as an object, or the folder in which the teacher is now.
        data: The data of a run whose data were given as an object, or {"path": the place where the data are now}.
        trust_code: Whether the code that run.yaml and the teacher's folder name may run, as for `train`.
        **overrides: Further changes to the recipe that change no weight: `evaluation`, and paths.

    Returns:
        An object with `.sample`, `.evaluate`, `.export`, `.generator` and `.teacher`.

    Raises:
        UserError: There is no such run, or it has no such weights.
    """
    objects = Objects(teacher if isinstance(teacher, Denoiser) else None, data if isinstance(data, Dataset) else None)
    if isinstance(teacher, str | Path):
        overrides["teacher"] = str(teacher)
    if isinstance(data, Mapping):
        overrides["data"] = data
    with trusting(trust_code):
        return load_trained(folder, which, objects=objects, changes=overrides)


def finish(run: Run | TeacherRun, runs: Path, console: Console) -> Path:
    """Train a run, or the rest of it, and return its folder.

    Args:
        run: The recipe. If the folder exists already, its own run.yaml counts instead.
        runs: The folder of run folders, in which the run's is NAME.
        console: Where it is said that the run is complete already.
    """
    folder = runs / run.name
    saved = checkpoint.folders(folder / "checkpoints")
    if not saved:
        train(run, folder)
        return folder
    run = load_run(folder)
    written = isinstance(run, Run) or (folder / "teacher").is_dir()
    if written and int(saved[0].name) >= run.images and checkpoint.flaw(saved[0]) is None:
        console.print(f"'{folder}' is complete already (remove the folder to train again)")
    else:
        resume(folder, 1)
    return folder


def take_objects(
    overrides: Mapping[str, Any], hooks: Sequence[Hook], optimizer: OptimizerFactory | Mapping[str, Any] | None
) -> tuple[Objects, dict[str, Any]]:
    """Split overrides into objects, which no recipe can hold, and changes to the recipe."""
    changes = dict(overrides)
    teacher = changes.pop("teacher") if isinstance(changes.get("teacher"), Denoiser) else None
    data = changes.pop("data") if isinstance(changes.get("data"), Dataset) else None
    if teacher is not None:
        changes["teacher"] = GIVEN_TEACHER
    if data is not None:
        changes["data"] = GivenData(data.name)
    if isinstance(optimizer, Mapping):  # the name is both a key of a teacher's recipe and an argument of the functions
        changes["optimizer"], optimizer = optimizer, None
    return Objects(teacher, data, tuple(hooks), optimizer), changes


def with_objects(run: Run | TeacherRun, objects: Objects) -> Run | TeacherRun:
    """Return the run with the names of its objects, so that run.yaml lists them."""
    names = list(objects.names)
    if isinstance(run, Run) and type(run.objective).__module__ == "__main__":  # no other process can import it
        names.append("objective")
    return replace(run, objects=tuple(names)) if names else run


def start_processes(
    command: str,
    run: Run | TeacherRun,
    folder: Path,
    processes: int,
    objects: Objects,
    options: Sequence[str],
    allow: Iterable[str] = (),
) -> None:
    """Run `distill COMMAND` in several processes on this machine, and show its output as it comes.

    A command is started, since processes that Python spawns would run the caller's script again.

    Args:
        command: train, teacher or resume.
        run: The recipe.
        folder: The run folder.
        processes: The number of processes.
        objects: The caller's objects, which must be empty: they cannot reach other processes.
        options: The options of the command that say how many processes to start.
        allow: The keys whose change the user accepts.

    Raises:
        UserError: Objects were given, or the command failed.
    """
    if given := (*objects.names, *(["objective"] if "objective" in run.objects else [])):
        raise UserError(
            f"processes: {processes} processes cannot share the objects {', '.join(given)}; start your program with"
            f" `accelerate launch --num_processes {processes}` and leave processes out"
        )
    # A recipe travels as changes to an empty one, and not in a file, which a kill of this program would leave behind.
    before = dump(load_run(folder)) if command == "resume" else {}
    changes = [f"{key}={json.dumps(value)}" for key, value in dump(run).items() if value != before.get(key)]
    if command == "resume":
        arguments = [str(folder), *changes, *(option for key in allow for option in ("--allow", key))]
    else:
        arguments = ["-", *changes, "--folder", str(folder)]
    if trust := trusted():
        arguments.append("--trust-code" if trust is True else f"--trust-code={','.join(sorted(trust))}")
    # The command, and with it its processes, ends when this program is killed (launch/processes.py).
    program = [sys.executable, "-P", "-m", "launch.main", command, *arguments, *options]
    program = ["env", f"DISTILL_LAUNCHER={os.getpid()}", *program]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as started:
        last = ""
        for line in started.stdout or ():
            print(line, end="", flush=True)  # a notebook shows the output of this process alone
            last = line.strip() or last
    if started.returncode:
        raise UserError(last.removeprefix("distill: ") or f"{command}: ended with exit code {started.returncode}")
