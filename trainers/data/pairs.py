"""A folder of ODE pairs: what the multi-step teacher makes of noise, as `distill pairs` writes it.

`pairs.json` says of which teacher, data and setting they are, and lists the shards, safetensors files of `noise` and
`target` [N, C, H, W] and, under a teacher of classes, `label` [N], of prompts `cond.NAME` [N, ...] for each tensor of
their embeddings; shards are mapped into memory, not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from distill.denoiser import Condition
from distill.errors import UserError
from trainers.data.shards import rows

DESCRIPTION = "pairs.json"


@dataclass(frozen=True)
class PairSet:
    """`count` pairs in shards of equal length but for the last, and how many of them each global batch takes."""

    count: int
    per_batch: int
    shards: tuple[Mapping[str, Tensor], ...]

    def rows(self, positions: Tensor) -> dict[str, Tensor]:
        """`noise` and `target` [P, C, H, W] and the condition, if any, at int64 positions [P]: see `condition`."""
        return rows(self.shards, positions)


def spelled(cond: Condition) -> dict[str, Tensor]:
    """A condition as columns of a shard: `label`, or `cond.NAME` for each tensor of a mapping."""
    if isinstance(cond, Mapping):
        return {f"cond.{name}": value for name, value in cond.items()}
    return {} if cond is None else {"label": cond}


def condition(columns: Mapping[str, Tensor]) -> Condition:
    """The inverse."""
    mapping = {name.removeprefix("cond."): value for name, value in columns.items() if name.startswith("cond.")}
    return mapping or columns.get("label")


def describe(folder: Path) -> dict[str, Any]:
    """pairs.json of a folder; raises UserError where it is missing or damaged."""
    try:
        description: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text())
        assert {"teacher", "shape", "classes", "count", "shards"} <= description.keys()
        return description
    except FileNotFoundError:
        raise UserError(f"pairs: '{folder}' has no {DESCRIPTION}; `distill pairs TEACHER {folder}` makes it") from None
    except (OSError, ValueError, AttributeError, AssertionError) as error:
        raise UserError(f"pairs: '{folder / DESCRIPTION}' is damaged ({type(error).__name__})") from error


def open_pairs(folder: Path, per_batch: int, teacher: str, shape: tuple[int, ...], classes: int) -> PairSet:
    """The pairs in `folder`; raises UserError unless they are complete and of the teacher with this hash and form."""
    description = describe(folder)
    if description["teacher"] != teacher:
        raise UserError(f"pairs: '{folder}' holds pairs of another teacher")
    for what, theirs, ours in (
        ("shape", tuple(description["shape"]), shape),
        ("classes", description["classes"], classes),
    ):
        if theirs != ours:
            raise UserError(f"pairs: '{folder}' has {what} {theirs}, the teacher {ours}")
    shards, count = description["shards"], description["count"]
    done = sum(shard["pairs"] for shard in shards.values())
    if done != count:
        raise UserError(f"pairs: '{folder}' holds {done:,} of {count:,} pairs; `distill pairs` goes on from there")
    return PairSet(count, per_batch, tuple(_shard(folder / name, shard["bytes"]) for name, shard in shards.items()))


def _shard(file: Path, size: int) -> dict[str, Tensor]:
    try:
        if file.stat().st_size != size:
            raise UserError(f"pairs: '{file}' has {file.stat().st_size} bytes, not {size}; `distill pairs` mends it")
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"pairs: cannot read '{file}' ({type(error).__name__}); `distill pairs` mends it") from error
