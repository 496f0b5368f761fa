"""wandb and TensorBoard through Accelerate, on request; log.jsonl is always the truth."""

from __future__ import annotations

import importlib.util
import json
import uuid
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from distill.errors import UserError
from trainers.recipe.run import Experiment
from trainers.recipe.strict_yaml import dump

PROJECT = "distill-onestep"


def check_trackers(run: Experiment) -> None:
    """Raise UserError when a tracker is asked for that is not installed: Accelerate would log nothing, silently."""
    for tracker in run.tracking:
        found = importlib.util.find_spec(tracker)
        if found is None or found.origin is None:  # a folder of this name in the working directory is no package
            raise UserError(f"tracking: {tracker} is not installed; `pip install 'distill-onestep[{tracker}]'`")


def start_trackers(run: Experiment, folder: Path, accelerator: Accelerator, console: Console) -> None:
    """Start the trackers the run asks for; wandb continues its run on resume and works offline without a login."""
    if not run.tracking or not accelerator.is_main_process:
        return
    settings: dict[str, Any] = {}
    if "wandb" in run.tracking:
        settings["wandb"] = {"id": _wandb_id(folder), "resume": "allow", "name": run.name, "dir": str(folder)}
        if not _wandb_login():
            settings["wandb"]["mode"] = "offline"
            console.print("wandb: no login found, recording offline; `wandb sync` uploads it later", style="yellow")
    try:
        accelerator.init_trackers(PROJECT, _flat(dump(run)), settings)
    except Exception as error:  # wandb's own kinds, which exist only where wandb is installed
        if settings.get("wandb", {}).get("mode") == "offline" or "wandb" not in run.tracking:
            raise
        console.print(f"wandb: recording offline, since it cannot be reached: {' '.join(str(error).split())}")
        settings["wandb"]["mode"] = "offline"
        accelerator.init_trackers(PROJECT, _flat(dump(run)), settings)


def _wandb_login() -> bool:
    import wandb

    # wandb reads its own environment: a mode that is chosen there stands.
    return wandb.setup().settings.mode != "online" or bool(wandb.api.api_key)


def _wandb_id(folder: Path) -> str:
    """The id of the run folder's wandb run, made once: a resume continues the same curves."""
    file = folder / "wandb.json"
    if not file.is_file():
        file.write_text(json.dumps({"id": uuid.uuid4().hex[:8]}) + "\n")
    return str(json.loads(file.read_text())["id"])


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones, lists as text: TensorBoard takes nothing else."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat
