"""A folder of ODE pairs, as `distill pairs` writes it: noise, and the teacher's multi-step sample of it.

`pairs.json` states the teacher, the data and the settings, and lists the shards. A shard is a safetensors file of
`noise` and `target` [N, C, *spatial] with the condition: `label` [N] for classes, `cond.NAME` [N, ...] for each tensor
of a prompt's embedding. Shards are mapped into memory. Opening them reads each number once, to see that it is finite.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, cast

import torch
from pydantic import Field, with_config
from safetensors import SafetensorError
from torch import Tensor
from typing_extensions import TypedDict

from distill.conditions import Condition
from distill.errors import UserError, require
from distill.records import STRICT, Count, read_record
from distill.saved_files import load_tensors
from distill.weights import FLOATS, is_finite
from trainers.data.shards import Table

DESCRIPTION = "pairs.json"


@with_config(STRICT)
class ShardRecord(TypedDict):
    """A shard in pairs.json."""

    pairs: Annotated[int, Field(ge=1, lt=2**63)]
    bytes: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@with_config(STRICT)
class PairsRecord(TypedDict):
    """The content of pairs.json."""

    teacher: str
    data: str
    shape: list[Annotated[int, Field(ge=1)]]
    classes: Count
    prompts: NotRequired[str]
    evaluations: Count
    teacher_cfg: float
    seed: int
    sampler: NotRequired[dict[str, Any]]
    count: Annotated[int, Field(ge=1, lt=2**63)]
    shards: dict[Annotated[str, Field(pattern=r"^pairs-\d+\.safetensors$")], ShardRecord]


@dataclass(frozen=True, kw_only=True)
class PairSet(Table):
    """ODE pairs in a folder: a table of `noise` and `target` [N, C, *spatial], with the columns of the condition.

    Attributes:
        teacher: The hash of the teacher that made the samples.
    """

    teacher: str

    def check_teacher(self, teacher: str) -> None:
        """Raise UserError unless the pairs are those of the teacher with the hash `teacher`."""
        if self.teacher != teacher:
            raise UserError(f"pairs: '{self.folder}' holds pairs of another teacher")


def columns_of(cond: Condition) -> dict[str, Tensor]:
    """Return a condition as columns of a shard: `label` for labels, and `cond.NAME` for any other tensor."""
    return {"label" if name == "labels" else f"cond.{name}": value for name, value in cond.items()}


def condition_of(columns: Mapping[str, Tensor]) -> Condition:
    """Return the condition in the columns of a shard: the inverse of `columns_of`."""
    if "label" in columns:
        return Condition(labels=columns["label"])
    return Condition({n.removeprefix("cond."): value for n, value in columns.items() if n.startswith("cond.")})


def read_description(folder: Path) -> dict[str, Any]:
    """Read pairs.json of a folder.

    Raises:
        UserError: It is missing or damaged.
    """
    file = folder / DESCRIPTION
    try:
        return cast(dict[str, Any], read_record(file, PairsRecord, f"pairs: '{file}'"))
    except FileNotFoundError:
        raise UserError(f"pairs: '{folder}' has no {DESCRIPTION}; `distill pairs TEACHER {folder}` makes it") from None


def open_pairs(folder: Path, shape: tuple[int, ...], classes: int) -> PairSet:
    """Open the pairs in a folder.

    Args:
        folder: The folder.
        shape: (C, *spatial) of the teacher's samples.
        classes: The number of the teacher's classes.

    Raises:
        UserError: The pairs are incomplete, or of another shape or number of classes.
    """
    description = read_description(folder)
    theirs = {"shape": tuple(description["shape"]), "classes": description["classes"]}
    for what, ours in {"shape": shape, "classes": classes}.items():
        if theirs[what] != ours:
            raise UserError(f"pairs: '{folder}' has {what} {theirs[what]}, the teacher {ours}")
    shards, count = description["shards"], description["count"]
    done = sum(shard["pairs"] for shard in shards.values())
    if done != count:
        raise UserError(f"pairs: '{folder}' holds {done:,} of {count:,} pairs; `distill pairs` goes on from there")
    opened = tuple(_shard(folder / name, shard["bytes"]) for name, shard in shards.items())
    for name, columns in zip(shards, opened, strict=True):
        try:
            _check_columns(columns, shape, classes)
        except UserError as error:
            raise UserError(f"pairs: '{folder / name}': {error}") from error
    return PairSet(count, opened, folder, teacher=description["teacher"])


def _check_columns(columns: Mapping[str, Tensor], shape: tuple[int, ...], classes: int) -> None:
    """Raise UserError if the columns of a shard are not pairs of this shape and number of classes, or not finite."""
    for name in ("noise", "target"):
        form = tuple(columns[name].shape[1:]) if name in columns and columns[name].ndim else None
        require(form == shape, f"'{name}' is of shape {form}, the teacher's samples {shape}")
        require(columns[name].dtype in FLOATS, f"'{name}' is of {columns[name].dtype}")
    labels = columns.get("label")
    require((labels is not None) == (classes > 0), f"it has {'no' if classes else 'a'} column 'label'")
    if labels is not None:
        require(labels.dtype == torch.int64 and labels.ndim == 1 and labels.numel() > 0, "'label' is no list of labels")
        low, high = labels.aminmax()
        require(
            0 <= int(low) <= int(high) < classes, f"'label' must be from 0 to {classes - 1}, goes from {low} to {high}"
        )
    for name, value in columns.items():
        require(name in ("noise", "target", "label") or name.startswith("cond."), f"'{name}' is no column of pairs")
        require(is_finite(value), f"'{name}' is not finite")


def _shard(file: Path, size: int) -> dict[str, Tensor]:
    """Map a shard of `size` bytes into memory."""
    try:
        if file.stat().st_size != size:
            raise UserError(f"pairs: '{file}' has {file.stat().st_size} bytes, not {size}; `distill pairs` repairs it")
        return load_tensors(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"pairs: cannot read '{file}' ({type(error).__name__}); `distill pairs` repairs it") from error
