"""The check that the content of a checkpoint can be that of a run, before any of it is used.

A hash says that a file is what was written. It does not say that what was written fits: torch's fused optimizers, for
one, write beyond the end of moments that are too small.
"""

import math
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import UserError, options, require
from distill.weights import buffer_names, fits, is_finite
from trainers.checkpoints.checkpoint import (
    STATE,
    check_average,
    optimizer_dtype,
    optimizer_keys,
    read_state,
    unfrozen_state,
)
from trainers.checkpoints.tensor_files import ShardedTensors
from trainers.engine.player import Player
from trainers.engine.session import Session

AT_ONCE = 2**24  # elements of a tensor that are in memory at one time while they are checked


def content_flaw(session: Session, folder: Path) -> str | None:
    """Return what in a checkpoint cannot be of this run, in words, or None.

    Names, shapes and dtypes of all tensors are compared with those of the session. The numbers of weights, averages,
    moments and memory must be finite.

    Args:
        session: The run, built as for its start.
        folder: A checkpoint whose files have the hashes of its manifest.
    """
    try:
        _check(session, folder)
    except (UserError, RuntimeError) as error:
        return str(error)
    return None


def average_flaw(module: nn.Module, frozen_names: Container[str], folder: Path) -> str | None:
    """Return why the averaged weights in a checkpoint cannot be those of `module`, in words, or None.

    Names, shapes and dtypes are compared, and no numbers are read.

    Args:
        module: The network.
        frozen_names: The parameters that a checkpoint lacks.
        folder: The checkpoint.
    """
    try:
        check_average(folder, module, frozen_names)
    except (UserError, RuntimeError) as error:
        return str(error)
    return None


def _check(session: Session, folder: Path) -> None:
    """Raise UserError or RuntimeError for the first thing in a checkpoint that cannot be of this run."""
    description, state = read_state(folder), session.state
    counters = {name: sorted(player.counters()) for name, player in state.players.items()}
    saved = {name: sorted(values) for name, values in description["counters"].items()}
    require(saved == counters, f"{STATE} counts {saved}, the run {counters}")
    for name, player in state.players.items():
        _check_network(ShardedTensors(folder, name), player.bare, player.frozen_names)
        _check_optimizer(player, ShardedTensors(folder, f"{name}.optimizer"), description)
    averages = {"ema": state.ema, **{f"power_ema_{std}": average for std, average in state.power_ema.items()}}
    for stem, average in averages.items():
        _check_network(ShardedTensors(folder, stem), average.module, average.frozen_names)
    _check_tensors(ShardedTensors(folder, "memory"), state.memory)
    for stem in ("meter", *(["pace"] if state.pace is not None and "pace" in description else [])):
        meter = ShardedTensors(folder, stem)
        for name in meter:
            shape, dtype = meter.facts(name)
            right = len(shape) == 3 and shape[0] == description["processes"] and shape[1] in (1, 6) and shape[2] == 2
            require(right and dtype == torch.float64, f"'{meter.file}': {name} is {shape}, {dtype}, no sums of the log")


def _check_network(found: ShardedTensors, network: nn.Module, frozen_names: Container[str]) -> None:
    _check_tensors(found, unfrozen_state(network, frozen_names), buffer_names(network))


def _check_tensors(found: ShardedTensors, expected: Mapping[str, Tensor], masks: Container[str] = ()) -> None:
    """Check the names, shapes, kinds of dtype and numbers of tensors. Raise RuntimeError or UserError for the first."""
    found.check(expected)
    for name, tensor in expected.items():
        _check_tensor(found, name, list(tensor.shape), tensor.dtype, name in masks)


def _check_optimizer(player: Player, found: ShardedTensors, description: Mapping[str, Any]) -> None:
    """Check the state of a player's optimizer. An optimizer of the caller's own may keep tensors of any shape."""
    parameters: dict[str, Any] = dict(player.bare.named_parameters())
    saved: dict[str, set[str]] = {name: set() for name in parameters}
    for entry in found:
        name, bar, key = entry.partition("|")
        require(bool(bar) and name in parameters, f"'{found.file}': {entry} is the state of no parameter")
        saved[name].add(key)
        parameter = parameters[name]
        made = player.optimizer.state.get(parameter, {}).get(key)
        shape, dtype = list(parameter.shape), optimizer_dtype(player, parameter, key)
        if isinstance(made, Tensor):
            shape = list(made.shape)
        elif key == "step":
            shape = []
        elif dtype is None:
            shape = found.facts(entry)[0]
        _check_tensor(found, entry, shape, dtype or found.facts(entry)[1])
    if not player.own_optimizer:
        _check_complete(player, found, saved, description)


def _check_complete(
    player: Player, found: ShardedTensors, saved: Mapping[str, set[str]], description: Mapping[str, Any]
) -> None:
    """Raise UserError where an optimizer of a recipe has saved a part of its state alone.

    A parameter that was never updated has no state, unless the optimizer makes it in advance.

    Args:
        player: The player.
        found: The saved state.
        saved: The keys that were saved, by parameter.
        description: The content of state.json.
    """
    started = any(saved.values())
    for name, parameter in player.bare.named_parameters():
        keys, expected = saved[name], optimizer_keys(player, parameter)
        if keys < expected and (keys or (started and parameter in player.optimizer.state)):
            lacking = options(f"{name}|{key}" for key in sorted(expected - keys))
            raise UserError(f"'{found.file}' lacks {lacking}")
    updates = description.get("updates", {}).get(player.name, 0) - description["counters"][player.name]["skipped"]
    has_state = any(optimizer_keys(player, parameter) for parameter in player.parameters)
    if has_state and not started and not _without_state(player, description["recipe"]):
        require(updates <= 0, f"'{found.file}' holds no state after {updates} updates")


def _without_state(player: Player, recipe: Mapping[str, Any]) -> bool:
    """Return whether a player's optimizer had no state under the recipe of a checkpoint, which a resume may change."""
    match recipe.get("optimizer" if player.name == "teacher" else player.name):
        case {"name": "sgd", "betas": [momentum, *_]}:
            return bool(momentum == 0)
    return False


def _check_tensor(found: ShardedTensors, name: str, shape: list[int], dtype: torch.dtype, mask: bool = False) -> None:
    """Check the shape, the kind of dtype and the numbers of one tensor. Raise UserError where one is wrong."""
    saved, kind = found.facts(name)
    require(saved == shape, f"'{found.file}': {name} is {saved}, the run's is {shape}")
    require(fits(kind, dtype), f"'{found.file}': {name} is of {kind}, the run's is of {dtype}")
    if not kind.is_floating_point or math.prod(shape) == 0:
        return
    rows = shape[0] if shape else 1
    step = max(1, AT_ONCE * rows // math.prod(shape))
    for first in range(0, rows, step):
        part = found.rows(name, first, min(step, rows - first))
        require(is_finite(part.to(dtype), mask), f"'{found.file}': {name} is not finite")
