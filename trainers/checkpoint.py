"""Checkpoints that cannot be half: staged in a temporary folder, hashed, manifest last, renamed into place.

checkpoints/IMAGES/ holds, as safetensors, the weights that the players train, those of every average, the optimizers'
state, the objective's memory and the meter; `state.json` the counters; `manifest.json` size and SHA-256 of each file.
Loading runs no code. The frozen teacher is never saved, its identity always.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.errors import UserError
from trainers.files import sha256, sync
from trainers.session import Session
from trainers.state import Player

MANIFEST = "manifest.json"
AVERAGE = "ema.safetensors"
FORMAT = 2


def save(session: Session, root: Path, keep: int) -> None:
    """Write `root`/IMAGES from rank 0 and then remove older ones, so that `keep` are left; collective."""
    meter = session.state.meter.rows(session.accelerator)
    if session.accelerator.is_main_process:
        final = root / f"{session.state.images:012d}"
        staging = root / f".staging-{final.name}"
        for leftover in root.glob(".staging-*"):
            shutil.rmtree(leftover)
        staging.mkdir(parents=True)
        _write(session, meter, staging)
        if final.exists():
            shutil.rmtree(final)  # an invalid folder of this name, which the resume skipped
        os.rename(staging, final)
        sync(root)
        older = [folder for folder in folders(root) if folder.name < final.name]  # a later one is damaged
        for old in older[keep - 1 :]:
            shutil.rmtree(old)
    session.accelerator.wait_for_everyone()


def _write(session: Session, meter: dict[str, Tensor], folder: Path) -> None:
    state = session.state
    for name, player in state.players.items():
        save_module(player.bare, folder / f"{name}.safetensors", player.kept)
        save_file(_contiguous(dict(_optimizer_tensors(player))), folder / f"{name}.optimizer.safetensors")
    save_average(session, folder)
    for std, average in state.power_ema.items():
        save_module(average.module, folder / f"power_ema_{std}.safetensors", average.kept)
    save_file(_contiguous(meter), folder / "meter.safetensors")
    save_file(_contiguous(state.memory), folder / "memory.safetensors")
    counters = {name: player.counters() for name, player in state.players.items()}
    description = {
        "format": FORMAT,
        "images": state.images,
        "processes": session.accelerator.num_processes,
        "counters": counters,
        "teacher": session.teacher_hash,
    }
    (folder / "state.json").write_text(json.dumps(description, indent=2) + "\n")
    files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in sorted(folder.iterdir())}
    for file in folder.iterdir():
        sync(file)
    (folder / MANIFEST).write_text(json.dumps(files, indent=2) + "\n")
    sync(folder / MANIFEST)
    sync(folder)


def folders(root: Path) -> list[Path]:
    """Checkpoint folders under `root`, newest first, valid or not."""
    if not root.is_dir():
        return []
    return sorted((p for p in root.iterdir() if p.is_dir() and p.name.isdigit()), reverse=True)


def flaw(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder; None when every file has the size and hash of the manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, expected in manifest.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes, not {expected['bytes']}"
            if sha256(file) != expected["sha256"]:
                return f"{name} is not what was written (SHA-256 differs)"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        return f"{MANIFEST} is damaged ({type(error).__name__})"
    return None if manifest else f"{MANIFEST} lists no file"


def newest(root: Path) -> tuple[Path, list[str]]:
    """The newest valid checkpoint under `root`, and a line for each newer one that was skipped.

    Raises UserError when there is none: a run never starts from zero silently.
    """
    skipped: list[str] = []
    for folder in folders(root):
        wrong = flaw(folder)
        if wrong is None:
            return folder, skipped
        skipped.append(f"skipped checkpoint '{folder}': {wrong}")
    raise UserError("; ".join([f"no valid checkpoint in '{root}'", *skipped]))


def restore(session: Session, folder: Path) -> None:
    """Load `folder` into the session; raises UserError when it is another run's."""
    description = read_state(folder)
    if description["teacher"] != session.teacher_hash:
        raise UserError(
            f"'{folder}' was trained from another teacher than the one in run.yaml (its files have changed)"
        )
    state = session.state
    device = session.accelerator.device
    for name, player in state.players.items():
        load_module(player.bare, folder / f"{name}.safetensors", player.kept)
        _load_optimizer(player, _tensors(folder / f"{name}.optimizer.safetensors"))
        counters = description["counters"][name]
        for counter, value in counters.items():
            getattr(player, counter).fill_(value)
    load_average(folder, state.ema.module, state.ema.kept)
    for std, average in state.power_ema.items():
        load_module(average.module, folder / f"power_ema_{std}.safetensors", average.kept)
    accelerator = session.accelerator
    state.meter.load(
        _tensors(folder / "meter.safetensors"), accelerator.process_index, accelerator.num_processes, device
    )
    for name, value in _tensors(folder / "memory.safetensors").items():
        state.memory[name].copy_(value)
    state.images = description["images"]


def read_state(folder: Path) -> dict[str, Any]:
    """state.json of a valid checkpoint."""
    description: dict[str, Any] = json.loads((folder / "state.json").read_text())
    if description["format"] != FORMAT:
        raise UserError(f"'{folder}' has checkpoint format {description['format']}; this version reads {FORMAT}")
    return description


def save_average(session: Session, folder: Path) -> None:
    """Write the averaged weights alone."""
    save_module(session.state.ema.module, folder / AVERAGE, session.state.ema.kept)


def load_average(folder: Path, module: torch.nn.Module, kept: Container[str] = ()) -> None:
    """Load the averaged weights of a checkpoint into `module`, but for the parameters that are `kept`."""
    load_module(module, folder / AVERAGE, kept)


def save_module(module: torch.nn.Module, file: Path, kept: Container[str] = ()) -> None:
    """Write parameters and buffers of `module`, but for those that are `kept` as they are."""
    save_file(_contiguous({name: value for name, value in module.state_dict().items() if name not in kept}), file)


def load_module(module: torch.nn.Module, file: Path, kept: Container[str] = ()) -> None:
    """Load what save_module wrote, the `kept` parameters staying as they are; raises UserError when the file cannot be
    read."""
    own = {name: value for name, value in module.state_dict().items() if name in kept}
    module.load_state_dict(_tensors(file) | own)


def _optimizer_tensors(player: Player) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in player.bare.named_parameters():
        for key, value in player.optimizer.state.get(parameter, {}).items():
            if value is not None:
                yield f"{name}|{key}", value


def _load_optimizer(player: Player, tensors: dict[str, Tensor]) -> None:
    parameters = dict(player.bare.named_parameters())
    for name, value in tensors.items():
        parameter, key = name.split("|")
        player.optimizer.state[parameters[parameter]][key] = value.to(parameters[parameter].device)


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read '{file}': {' '.join(str(error).split())}") from error
