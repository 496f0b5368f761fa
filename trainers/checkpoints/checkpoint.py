"""The contents of a checkpoint, its verification, and the loading of a run's state from it.

A checkpoint is a folder checkpoints/IMAGES/. Its safetensors files (trainers.checkpoints.tensor_files) hold the weights
that the players train, every average, the optimizers' state, the objective's memory and the meter. `state.json` holds
the counters and the recipe, and `manifest.json` the size and SHA-256 of each file. The frozen teacher is never saved,
but the hash that identifies it is. Loading runs no code. trainers.checkpoints.saver writes checkpoints.
"""

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from distill.errors import NEAREST, UserError, one_line
from distill.records import parse_record, read_record, reading
from distill.saved_files import read_bounded
from distill.weights import buffer_names
from trainers.checkpoints.formats import ListedFile, Manifest, State
from trainers.checkpoints.tensor_files import SUFFIX, Contents, Rows, ShardedTensors, own_rows, stem_of, write_tensors
from trainers.engine.player import Player
from trainers.engine.session import Session
from trainers.io.atomic import sha256
from trainers.recipe.strict_yaml import dump

MANIFEST = "manifest.json"
STATE = "state.json"
AVERAGE_STEM = "ema"
AVERAGE = f"{AVERAGE_STEM}{SUFFIX}"
FORMAT = 3


def state_tensors(session: Session) -> Contents:
    """Return every tensor of the state, by stem and name."""
    state, accelerator = session.state, session.accelerator
    rank, world = accelerator.process_index, accelerator.num_processes
    found: dict[str, dict[str, Tensor | Rows]] = {}
    for name, player in state.players.items():
        found[name] = {**unfrozen_state(player.bare, player.frozen_names)}
        found[f"{name}.optimizer"] = dict(_optimizer_tensors(player))
    found["ema"] = {**unfrozen_state(state.ema.module, state.ema.frozen_names)}
    for std, average in state.power_ema.items():
        found[f"power_ema_{std}"] = {**unfrozen_state(average.module, average.frozen_names)}
    # Every rank has sums of its own. They are saved as the rows of one tensor, a row for each rank.
    meters = {"meter": state.meter} | ({} if state.pace is None else {"pace": state.pace.errors})
    for stem, meter in meters.items():
        found[stem] = {name: Rows(meter.totals[name][None], rank, world) for name in sorted(meter.totals)}
    found["memory"] = {**state.memory}
    return found


def state_description(session: Session) -> dict[str, Any]:
    """Return the content of state.json: the counters, the recipe, and all else of the state that is no tensor."""
    state = session.state
    more: dict[str, Any] = {} if state.pace is None else {"pace": state.pace.state()}
    more |= {} if session.ended is None else {"ended": session.ended}
    return {
        "format": FORMAT,
        "images": state.images,
        "processes": session.accelerator.num_processes,
        "counters": {name: player.counters() for name, player in state.players.items()},
        "updates": {name: player.updates for name, player in state.players.items()},
        "unfinished": state.unfinished,
        "teacher": session.teacher_hash,
        "recipe": dump(session.run),
        "shape": session.dataset.shape,
        "classes": session.dataset.classes,
        "data": session.source.digest,
        "changes": state.changes,
        **more,
    }


def folders(root: Path) -> list[Path]:
    """Return the checkpoint folders under `root`, newest first, valid or not."""
    if not root.is_dir():
        return []
    return sorted((p for p in root.iterdir() if p.is_dir() and is_moment(p.name)), reverse=True)


def is_moment(name: str) -> bool:
    """Return whether the name of a folder is a number of images."""
    return name.isascii() and name.isdigit() and len(name) < 19


def flaw(folder: Path, need: Container[str] | None = None) -> str | None:
    """Return what is wrong with a checkpoint, in words, or None if its files are those of the manifest.

    Every file must have its size and its hash. The files of all players and of the average must be there.

    Args:
        folder: The checkpoint.
        need: The stems of the tensor files to check, beside state.json. None for all files.
    """
    try:
        manifest = read_record(folder / MANIFEST, Manifest, MANIFEST)
        for name, expected in manifest.items():
            if need is not None and name != STATE and stem_of(name) not in need:
                continue
            if found := _file_flaw(folder / name, expected):
                return found
        if not manifest:
            return f"{MANIFEST} lists no file"
        if STATE not in manifest:
            return f"{MANIFEST} lists no {STATE}"
        players = read_state(folder)["counters"]
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except UserError as error:
        return str(error)
    listed = {stem_of(name) for name in manifest}
    wanted = (stem for player in players for stem in (player, f"{player}.optimizer"))
    missing = [stem for stem in (*wanted, AVERAGE_STEM) if stem not in listed]
    return f"{MANIFEST} lists no {missing[0]}{SUFFIX}" if missing else None


def _file_flaw(file: Path, expected: ListedFile) -> str | None:
    """Return what is wrong with a file of a checkpoint, in words, or None."""
    try:
        if not file.is_file():
            return f"{file.name} is missing"
        if (size := file.stat().st_size) != expected["bytes"]:
            return f"{file.name} has {size} bytes, not {expected['bytes']}"
        if sha256(file) != expected["sha256"]:
            return f"{file.name} is not what was written (SHA-256 differs)"
    except OSError as error:
        return f"{file.name} cannot be read: {error.strerror or one_line(error)}"
    return None


def newest(
    root: Path, need: Container[str] | None = None, content_flaw: Callable[[Path], str | None] | None = None
) -> tuple[Path, list[str]]:
    """Return the newest valid checkpoint under `root`, and a line for each newer one that was skipped.

    A run that trains at the same time may remove the checkpoints that were listed. Then they are listed again.

    Args:
        root: The folder of checkpoints.
        need: The stems of the tensor files to check, as in `flaw`.
        content_flaw: What is wrong with the content of a checkpoint without a flaw, in words, or None.

    Raises:
        UserError: There is no valid checkpoint. A run never starts from zero silently.
    """
    listed, skipped = folders(root), list[str]()
    for folder in listed:
        found = flaw(folder, need) or (None if content_flaw is None else content_flaw(folder))
        if found is None:
            return folder, skipped
        if folder.exists():
            skipped.append(f"skipped checkpoint '{folder}': {found}")
    if not all(folder.exists() for folder in listed):
        return newest(root, need, content_flaw)
    more = [f"and {len(skipped) - NEAREST} more"] if len(skipped) > NEAREST else []
    raise UserError("; ".join([f"no valid checkpoint in '{root}'", *skipped[:NEAREST], *more]))


def newest_state(root: Path) -> dict[str, Any] | None:
    """Return the content of state.json of the newest checkpoint under `root` that has one, without checking any hash.

    A launcher reads the number of processes in it before it starts them. The run itself verifies every file.
    """
    for folder in folders(root):
        with suppress(OSError, UserError):
            return read_state(folder)
    return None


def restore(session: Session, folder: Path) -> None:
    """Load a checkpoint into a session, in place. Collective.

    Args:
        session: The run, built as for its start. It may have another number of processes than when it was saved.
        folder: A valid checkpoint.

    Raises:
        UserError: The checkpoint is that of another teacher or optimizer, or a file cannot be read.
        RuntimeError: The checkpoint is that of another network.
    """
    description = read_state(folder)
    if not session.is_teacher(description["teacher"]):
        raise UserError(
            f"'{folder}' was trained from another teacher than the one in run.yaml (its files have changed)"
        )
    state, accelerator = session.state, session.accelerator
    for name, player in state.players.items():
        load_module(player.bare, folder / f"{name}{SUFFIX}", player.frozen_names)
        _load_optimizer(player, ShardedTensors(folder, f"{name}.optimizer"))
        player.set_counters(**description["counters"][name])
        # Earlier versions did not save this number, which is the same unless the batch or the objective changed.
        rounds = description["images"] // session.run.batch_size
        each = getattr(session.run, "most_fake_updates", 1) if name == "fake" else 1
        player.updates = description.get("updates", {}).get(name, rounds * each)
    load_average(folder, state.ema.module, state.ema.frozen_names)
    for std, average in state.power_ema.items():
        load_module(average.module, folder / f"power_ema_{std}{SUFFIX}", average.frozen_names)
    meters = {"meter": state.meter}
    # A run that decides about its pace since this resume alone begins with the first window.
    if state.pace is not None and "pace" in description:
        state.pace.load(description["pace"])
        meters["pace"] = state.pace.errors
    rank, world = accelerator.process_index, accelerator.num_processes
    for stem, meter in meters.items():
        saved = ShardedTensors(folder, stem)
        meter.load({name: saved[name] for name in saved}, rank, world, accelerator.device)
    ShardedTensors(folder, "memory").load(state.memory)
    state.images, state.unfinished = description["images"], description["unfinished"]
    state.changes = description.get("changes", [])


def read_state(folder: Path) -> dict[str, Any]:
    """Read state.json of a checkpoint.

    Raises:
        UserError: A field is wrong, or the checkpoint has another format than this version.
    """
    with reading(STATE):
        text = read_bounded(folder / STATE)
        found = parse_record(text).get("format")  # another format has other fields
        if found == FORMAT:
            return cast(dict[str, Any], parse_record(text, State))
    raise UserError(f"'{folder}' has checkpoint format {found!r:.20}; this version reads {FORMAT}")


def load_average(folder: Path, module: nn.Module, frozen_names: Container[str] = ()) -> None:
    """Load the averaged weights of a checkpoint into `module`. The parameters of `frozen_names` stay as they are."""
    load_module(module, folder / AVERAGE, frozen_names)


def check_average(folder: Path, module: nn.Module, frozen_names: Container[str] = ()) -> None:
    """Compare the averaged weights of a checkpoint with `module` by names, shapes and dtypes. No numbers are read.

    Args:
        folder: The checkpoint.
        module: The network.
        frozen_names: The parameters that a checkpoint lacks.

    Raises:
        UserError: A file cannot be read.
        RuntimeError: The weights are those of another network.
    """
    ShardedTensors(folder, AVERAGE_STEM).check(unfrozen_state(module, frozen_names), frozen_names)


def save_module(module: nn.Module, file: Path, frozen_names: Container[str] = ()) -> None:
    """Write parameters and buffers of `module`, without the parameters of `frozen_names`."""
    save_tensors(unfrozen_state(module, frozen_names), file)


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors to one file. Of a sharded tensor it holds the rows of this rank."""
    write_tensors({name: rows for name, value in tensors.items() if (rows := own_rows(value))}, file)


def load_module(module: nn.Module, file: Path, frozen_names: Container[str] = ()) -> None:
    """Load the weights of a file, or of the files that several processes wrote under its stem, into `module`.

    Args:
        module: The network, which may be sharded.
        file: STEM.safetensors. It need not exist if files of several processes do.
        frozen_names: The parameters that the file lacks. They stay as they are.

    Raises:
        UserError: A file cannot be read.
        RuntimeError: The file is that of another network.
    """
    found = ShardedTensors(file.parent, file.name.removesuffix(SUFFIX))
    found.load(unfrozen_state(module, frozen_names), frozen_names, buffer_names(module))


def unfrozen_state(module: nn.Module, frozen_names: Container[str] = ()) -> dict[str, Tensor]:
    """Return parameters and buffers of `module`, without the parameters of `frozen_names`."""
    return {name: value for name, value in module.state_dict().items() if name not in frozen_names}


def _optimizer_tensors(player: Player) -> Iterator[tuple[str, Tensor]]:
    """Yield the state of a player's optimizer, as (PARAMETER|KEY, tensor)."""
    for name, parameter in player.bare.named_parameters():
        for key, value in player.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                yield f"{name}|{key}", value
            elif value is not None:
                kind = type(player.optimizer).__name__
                raise UserError(f"{player.name}: {kind} keeps '{key}', which no checkpoint can hold: it is no tensor")


def optimizer_keys(player: Player, parameter: nn.Parameter) -> set[str]:
    """Return the keys of the state that an optimizer of a recipe has for a parameter after a step."""
    # An optimizer that has taken no step yet lacks Adam's moments, which torch makes in the first step.
    made_later = () if player.settings.name == "sgd" else ("step", "exp_avg", "exp_avg_sq")
    return set(player.optimizer.state.get(parameter, ()) or made_later)


def optimizer_dtype(player: Player, parameter: nn.Parameter, key: str) -> torch.dtype | None:
    """Return the dtype in which an optimizer keeps an entry of its state, or None if only the caller's own knows it."""
    made = player.optimizer.state.get(parameter, {}).get(key)
    if isinstance(made, Tensor):
        return made.dtype
    if player.own_optimizer:
        return None
    return torch.float32 if key == "step" else parameter.dtype


def _load_optimizer(player: Player, saved: ShardedTensors) -> None:
    """Load the state of a player's optimizer."""
    parameters = dict(player.bare.named_parameters())
    kind = player.settings.name
    expected = {name: optimizer_keys(player, parameter) for name, parameter in parameters.items()}
    for entry in saved:
        name, _, key = entry.partition("|")
        if key not in expected[name] and not player.own_optimizer:
            raise UserError(f"{player.name}.name: {kind} cannot go on where another optimizer has saved")
        dtype, value = optimizer_dtype(player, parameters[name], key), saved.like(entry, parameters[name])
        player.optimizer.state[parameters[name]][key] = value if dtype is None else value.to(dtype)
