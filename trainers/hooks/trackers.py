"""The trackers wandb, TensorBoard and Trackio, which Accelerate starts if the recipe asks for them.

log.jsonl holds all that they show.
"""

import importlib.util
import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from accelerate import Accelerator
from rich.console import Console

from distill.errors import UserError
from distill.installed import install_command
from distill.public_text import without_names
from distill.records import read_record
from trainers.engine.collectives import on_main_process
from trainers.io.atomic import atomic_file
from trainers.io.console import tolerate_disk_errors
from trainers.recipe.public import public_changes, public_recipe
from trainers.recipe.run import Experiment

PROJECT = "distill-onestep"
# By itself wandb also sends the names of the user and the machine, the command line, the program, the working
# directory, the git repository, and all that is printed.
WANDB_PRIVATE = {
    "x_disable_meta": True,
    "disable_git": True,
    "disable_code": True,
    "console": "off",
    "host": "",
    "username": "",
    "program": "",
    "program_abspath": "",
    "program_relpath": "",
}


def check_trackers(run: Experiment) -> None:
    """Raise UserError when a tracker of the recipe is not installed. Accelerate would silently log nothing."""
    for tracker in run.tracking:
        found = importlib.util.find_spec(tracker)
        if found is None or found.origin is None:  # a folder of this name in the working directory is no package
            raise UserError(f"tracking: {tracker} is not installed; `{install_command(tracker)}`")


def start_trackers(
    run: Experiment,
    folder: Path,
    accelerator: Accelerator,
    console: Console,
    fresh: bool = False,
    changes: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Start the trackers of a run on the main process. Collective.

    A resumed run continues its run of wandb and of Trackio. Without a login, and without a connection, wandb records
    offline.

    Args:
        run: The recipe, which names the trackers.
        folder: The run folder, which keeps the ids of the trackers' runs.
        accelerator: Starts the trackers.
        console: Where it is said that wandb records offline.
        fresh: Whether the run begins, with curves of its own.
        changes: The changes that resumes have made, which the trackers get beside the recipe.

    Raises:
        OSError: A file of a tracker cannot be written.
    """
    # One text, and always there, so that a resume from an older checkpoint replaces what an earlier one has sent.
    config = flat_keys(public_recipe(run)) | {"changes": json.dumps(public_changes(changes))}
    if run.tracking:  # an error of the disk ends all ranks
        on_main_process(accelerator, partial(_start, run, folder, accelerator, console, fresh, config))


def log_numbers(accelerator: Accelerator, numbers: dict[str, Any], images: int) -> None:
    """Log numbers by name to the trackers of a run. A full disk ends neither the run nor later attempts."""
    with tolerate_disk_errors(f"the trackers' numbers at {images:,} images are"):
        accelerator.log(numbers, step=images)


def log_picture(accelerator: Accelerator, name: str, picture: Any, images: int) -> None:
    """Log a picture by name to the trackers of a run. A full disk ends neither the run nor later attempts.

    Args:
        accelerator: Holds the trackers, on the main process.
        name: The name.
        picture: A PIL.Image.Image.
        images: The images of training.
    """
    with tolerate_disk_errors(f"the trackers' picture at {images:,} images is"):
        for tracker in accelerator.trackers:
            if tracker.name == "wandb":
                tracker.log_images({name: [picture]}, step=images)
            elif tracker.name == "tensorboard":  # takes a batch, its colours last
                pixels = np.asarray(picture.convert("RGB"))[None]
                tracker.log_images({name: pixels}, step=images, dataformats="NHWC")
            else:
                import trackio

                tracker.log({name: trackio.Image(picture)}, step=images)


def _start(
    run: Experiment, folder: Path, accelerator: Accelerator, console: Console, fresh: bool, config: dict[str, Any]
) -> None:
    """Start the trackers, as `start_trackers` does, with their `config`."""
    settings: dict[str, Any] = {}
    if "wandb" in run.tracking:
        name = without_names(run.name)
        settings["wandb"] = {
            "id": run_identity("wandb", folder, console, fresh),
            "resume": "allow",
            "name": name,
            "dir": str(folder),
        }
        settings["wandb"]["settings"] = WANDB_PRIVATE
        if not _wandb_login():
            settings["wandb"]["mode"] = "offline"
            console.print("wandb: no login found, recording offline; `wandb sync` uploads it later", style="yellow")
    if "trackio" in run.tracking:  # which finds the run of a resume by its name
        name = f"{without_names(run.name)}-{run_identity('trackio', folder, console, fresh)}"
        settings["trackio"] = {"name": name, "resume": "allow", "auto_log_gpu": False, "auto_log_cpu": False}
    start = partial(accelerator.init_trackers, PROJECT, config, settings)
    try:
        with _nameless_tensorboard():
            start()
    except Exception as error:  # wandb raises kinds of its own, which cannot be named where it is not installed
        if settings.get("wandb", {}).get("mode") == "offline" or "wandb" not in run.tracking:
            raise
        console.print(f"wandb: recording offline, since it cannot be reached: {' '.join(str(error).split())}")
        settings["wandb"]["mode"] = "offline"
        with _nameless_tensorboard():
            start()


@contextmanager
def _nameless_tensorboard() -> Iterator[None]:
    """Keep the name of the machine out of the names of TensorBoard's files, which it takes no setting for."""
    try:
        from tensorboard.summary.writer import event_file_writer
    except ImportError:  # not installed
        yield
        return
    theirs = event_file_writer.socket
    event_file_writer.socket = SimpleNamespace(gethostname=lambda: "run")
    try:
        yield
    finally:
        event_file_writer.socket = theirs


def _wandb_login() -> bool:
    """Return whether wandb needs no login, or finds one."""
    import wandb

    # wandb reads its environment by itself. A mode that the user has set there stays as it is.
    return wandb.setup().settings.mode != "online" or bool(wandb.api.api_key)


def run_identity(tracker: str, folder: Path, console: Console, fresh: bool) -> str:
    """Return the id that a run has in a tracker, made once, so that a resume continues the same curves.

    A copy of a run folder gets an id of its own, since two runs would otherwise mix their curves. A folder is a copy if
    the folder that wrote the id is still there. Otherwise it was moved, perhaps to another disk.
    """
    file = folder / f"{tracker}.json"
    known: dict[str, Any] = {}
    with suppress(FileNotFoundError, UserError):  # an empty or damaged file
        known = read_record(file)
    identity = None if fresh else known.get("id")
    if not isinstance(identity, str) or not re.fullmatch(r"[\w-]{1,64}", identity):
        identity = uuid.uuid4().hex[:8]
    elif _is_copy(folder, known.get("folder"), known.get("inode")):
        console.print(f"{tracker}: '{folder}' is a copy of the run folder of {identity}; it gets a run of its own")
        identity = uuid.uuid4().hex[:8]
    with atomic_file(file) as staging:
        staging.write_text(json.dumps({"id": identity, **_place(folder)}) + "\n")
    return identity


def _place(folder: Path) -> dict[str, Any]:
    """Return where a folder is. The inode tells it from another folder that later has its path."""
    return {"folder": str(folder.resolve()), "inode": folder.stat().st_ino}


def _is_copy(folder: Path, origin: Any, inode: Any) -> bool:
    """Return whether the folder `origin` of this inode is there still, and is not `folder`."""
    try:
        there = Path(origin).stat()
        return bool(there.st_ino == inode) and not Path(origin).samefile(folder)
    except (OSError, TypeError, ValueError):  # it is gone, or nothing was written
        return False


def flat_keys(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested keys as dotted ones, and lists as text, since TensorBoard takes nothing else."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flat_keys(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat
