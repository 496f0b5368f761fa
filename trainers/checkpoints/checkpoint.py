"""What a checkpoint holds, whether it is whole, and the way back from it.

checkpoints/IMAGES/ holds, as safetensors (see trainers.checkpoints.tensor_files), the weights that the players train, those of
every average, the optimizers' state, the objective's memory and the meter; `state.json` the counters and the recipe;
`manifest.json` size and SHA-256 of each file. Loading runs no code. The frozen teacher is never saved, its identity
always. trainers.checkpoints.saver writes it.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.errors import UserError
from trainers.checkpoints.tensor_files import SUFFIX, Contents, Rows, ShardedTensors, own_rows, write
from trainers.engine.player import Player
from trainers.engine.session import Session
from trainers.engine.sharding import gathered
from trainers.io.atomic import sha256
from trainers.recipe.strict_yaml import dump

MANIFEST = "manifest.json"
STATE = "state.json"
AVERAGE = "ema.safetensors"
FORMAT = 3


def contents(session: Session) -> Contents:
    """Every tensor of the state, by file."""
    state, accelerator = session.state, session.accelerator
    rank, world = accelerator.process_index, accelerator.num_processes
    found: dict[str, dict[str, Tensor | Rows]] = {}
    for name, player in state.players.items():
        found[name] = {**trained(player.bare, player.frozen_names)}
        found[f"{name}.optimizer"] = dict(_optimizer_tensors(player))
    found["ema"] = {**trained(state.ema.module, state.ema.frozen_names)}
    for std, average in state.power_ema.items():
        found[f"power_ema_{std}"] = {**trained(average.module, average.frozen_names)}
    # Each rank has sums of its own: a row for each.
    found["meter"] = {name: Rows(state.meter.totals[name][None], rank, world) for name in sorted(state.meter.totals)}
    found["memory"] = {**state.memory}
    return found


def describe(session: Session) -> dict[str, Any]:
    """Everything else of the state: state.json."""
    state = session.state
    return {
        "format": FORMAT,
        "images": state.images,
        "processes": session.accelerator.num_processes,
        "counters": {name: player.counters() for name, player in state.players.items()},
        "unfinished": state.unfinished,
        "teacher": session.teacher_hash,
        "recipe": dump(session.run),
    }


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
    if not manifest:
        return f"{MANIFEST} lists no file"
    return None if STATE in manifest else f"{MANIFEST} lists no {STATE}"


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
    state, accelerator = session.state, session.accelerator
    for name, player in state.players.items():
        load_module(player.bare, folder / f"{name}{SUFFIX}", player.frozen_names)
        _load_optimizer(player, ShardedTensors(folder, f"{name}.optimizer"))
        for counter, value in description["counters"][name].items():
            getattr(player, counter).fill_(value)
    load_average(folder, state.ema.module, state.ema.frozen_names)
    for std, average in state.power_ema.items():
        load_module(average.module, folder / f"power_ema_{std}{SUFFIX}", average.frozen_names)
    meter, rank, world = ShardedTensors(folder, "meter"), accelerator.process_index, accelerator.num_processes
    state.meter.load({name: meter[name] for name in meter}, rank, world, accelerator.device)
    ShardedTensors(folder, "memory").load(state.memory)
    state.images, state.unfinished = description["images"], description["unfinished"]


def read_state(folder: Path) -> dict[str, Any]:
    """state.json of a valid checkpoint."""
    description: dict[str, Any] = json.loads((folder / STATE).read_text())
    if description["format"] != FORMAT:
        raise UserError(f"'{folder}' has checkpoint format {description['format']}; this version reads {FORMAT}")
    return description


def whole_average(session: Session) -> dict[str, Tensor]:
    """The averaged weights, for the first process to save; collective where they are sharded."""
    return gathered(trained(session.state.ema.module, session.state.ema.frozen_names))


def save_average(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write the averaged weights alone."""
    save_tensors(weights, folder / AVERAGE)


def load_average(folder: Path, module: torch.nn.Module, frozen_names: Container[str] = ()) -> None:
    """Load the averaged weights of a checkpoint into `module`, but for the parameters that are `frozen_names`."""
    load_module(module, folder / AVERAGE, frozen_names)


def save_module(module: torch.nn.Module, file: Path, frozen_names: Container[str] = ()) -> None:
    """Write parameters and buffers of `module`, but for those that are `frozen_names` as they are."""
    save_tensors(trained(module, frozen_names), file)


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write whole tensors."""
    write({name: rows for name, value in tensors.items() if (rows := own_rows(value))}, file)


def load_module(module: torch.nn.Module, file: Path, frozen_names: Container[str] = ()) -> None:
    """Load what save_module wrote, or what several processes did of that name, the `frozen_names` parameters staying as they
    are; raises UserError when it cannot be read, RuntimeError when it is another network's."""
    ShardedTensors(file.parent, file.name.removesuffix(SUFFIX)).load(trained(module, frozen_names), spare=frozen_names)


def trained(module: torch.nn.Module, frozen_names: Container[str] = ()) -> dict[str, Tensor]:
    """Parameters and buffers of `module`, but for those that are `frozen_names` as they are."""
    return {name: value for name, value in module.state_dict().items() if name not in frozen_names}


def _optimizer_tensors(player: Player) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in player.bare.named_parameters():
        for key, value in player.optimizer.state.get(parameter, {}).items():
            if value is not None:
                yield f"{name}|{key}", value


def _load_optimizer(player: Player, stem: ShardedTensors) -> None:
    parameters = dict(player.bare.named_parameters())
    # torch makes Adam's in the first step
    later = set() if player.settings.name == "sgd" else {"step", "exp_avg", "exp_avg_sq"}
    keeps = {name: set(player.optimizer.state.get(p, ())) or later for name, p in parameters.items()}
    for name in stem:
        parameter, key = name.split("|")
        if key not in keeps[parameter]:
            raise UserError(
                f"{player.name}.name: {player.settings.name} cannot go on where another optimizer has saved"
            )
        player.optimizer.state[parameters[parameter]][key] = stem.like(name, parameters[parameter])
