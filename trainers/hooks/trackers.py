"""The trackers wandb and TensorBoard, which Accelerate starts if the recipe asks for them.

log.jsonl holds all that they show.
"""

import importlib.util
import json
import uuid
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from distill.errors import UserError
from distill.public_text import without_names
from trainers.recipe.public import public_recipe
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
            raise UserError(f"tracking: {tracker} is not installed; `pip install 'distill-onestep[{tracker}]'`")


def start_trackers(run: Experiment, folder: Path, accelerator: Accelerator, console: Console) -> None:
    """Start the trackers of a run on the main process.

    A resumed run continues its wandb run. Without a login, and without a connection, wandb records offline.

    Args:
        run: The recipe, which names the trackers.
        folder: The run folder, which keeps the id of the wandb run.
        accelerator: Starts the trackers.
        console: Where it is said that wandb records offline.
    """
    if not run.tracking or not accelerator.is_main_process:
        return
    settings: dict[str, Any] = {}
    if "wandb" in run.tracking:
        name = without_names(run.name)
        settings["wandb"] = {"id": _wandb_id(folder), "resume": "allow", "name": name, "dir": str(folder)}
        settings["wandb"]["settings"] = WANDB_PRIVATE
        if not _wandb_login():
            settings["wandb"]["mode"] = "offline"
            console.print("wandb: no login found, recording offline; `wandb sync` uploads it later", style="yellow")
    try:
        accelerator.init_trackers(PROJECT, _flat(public_recipe(run)), settings)
    except Exception as error:  # wandb raises kinds of its own, which cannot be named where it is not installed
        if settings.get("wandb", {}).get("mode") == "offline" or "wandb" not in run.tracking:
            raise
        console.print(f"wandb: recording offline, since it cannot be reached: {' '.join(str(error).split())}")
        settings["wandb"]["mode"] = "offline"
        accelerator.init_trackers(PROJECT, _flat(public_recipe(run)), settings)


def _wandb_login() -> bool:
    """Return whether wandb needs no login, or finds one."""
    import wandb

    # wandb reads its environment by itself. A mode that the user has set there stays as it is.
    return wandb.setup().settings.mode != "online" or bool(wandb.api.api_key)


def _wandb_id(folder: Path) -> str:
    """Return the id of the wandb run of a run folder. It is made once, so that a resume continues the same curves."""
    file = folder / "wandb.json"
    if not file.is_file():
        file.write_text(json.dumps({"id": uuid.uuid4().hex[:8]}) + "\n")
    return str(json.loads(file.read_text())["id"])


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested keys as dotted ones, and lists as text, since TensorBoard takes nothing else."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat
