"""Named tensors on disk, as safetensors: in one file, or divided over one file for each process.

One process alone writes STEM.safetensors, and the first of two writes STEM-00000-of-00002.safetensors. A tensor is
either complete in one file, or its rows (dimension 0) are in several. The metadata of a file then says which rows it
has, as `rows: {name: [first, total]}`. Any number of processes can read the files that any other number wrote. Loading
runs no code.
"""

import json
import re
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from distill.errors import UserError, one_line, options
from distill.records import Count, parse_record
from distill.saved_files import open_tensors, save_tensors
from distill.weights import fits, is_finite
from trainers.engine.sharding import shard_like

SUFFIX = ".safetensors"


class Rows(NamedTuple):
    """Some rows of a tensor.

    Attributes:
        tensor: The rows [R, ...].
        first: The number of the first of them in the complete tensor.
        total: The number of rows of the complete tensor.
    """

    tensor: Tensor
    first: int
    total: int


Contents = Mapping[str, Mapping[str, Tensor | Rows]]
"""{stem: {name: tensor}}. A sharded tensor is a DTensor, of which each process holds its rows."""


def file_name(stem: str, rank: int, world: int) -> str:
    """Return the name of the file that process `rank` of `world` writes."""
    return f"{stem}-{rank:05d}-of-{world:05d}{SUFFIX}" if world > 1 else stem + SUFFIX


def stem_of(name: str) -> str:
    """Return the name of a tensor file without rank and ending: "ema" for "ema-00000-of-00002.safetensors"."""
    return re.sub(r"-\d{5}-of-\d{5}$", "", name.removesuffix(SUFFIX))


def tensors_of_rank(contents: Contents, rank: int, world: int) -> dict[str, dict[str, Rows]]:
    """Choose the tensors that one process writes, so that every tensor is written once.

    A process writes its own rows of every sharded tensor. The replicated tensors are divided among the processes, so
    that all of them write a similar number of bytes. No message is needed: every process comes to the same division.

    Args:
        contents: All tensors, by stem and name.
        rank: The process.
        world: The number of processes.
    """
    chosen: dict[str, dict[str, Rows]] = {stem: {} for stem in contents}
    replicated, load = [], [0] * world
    for stem, tensors in contents.items():
        for name, value in tensors.items():
            if isinstance(value, Tensor) and not isinstance(value, DTensor):
                replicated.append((-value.nbytes, stem, name, value))
            elif (rows := own_rows(value)) is not None:
                chosen[stem][name] = rows
    # The largest tensor first, each to the process that has the fewest bytes so far.
    for negative_size, stem, name, value in sorted(replicated, key=lambda entry: entry[:3]):
        owner = load.index(min(load))
        load[owner] -= negative_size
        if owner == rank:
            chosen[stem][name] = local_rows(value)
    return {stem: rows for stem, rows in chosen.items() if rows or rank == 0}  # rank 0: also a stem without tensors


def own_rows(value: Tensor | Rows) -> Rows | None:
    """Return the rows of a tensor that this process writes, or None if another one writes them or there are none."""
    if not isinstance(value, DTensor):
        return value if isinstance(value, Rows) else local_rows(value)
    mesh = value.device_mesh
    coordinates = mesh.get_coordinate() or [0] * mesh.ndim
    # Of the replicas of a shard the first one writes.
    replica = any(c and placement.is_replicate() for c, placement in zip(coordinates, value.placements, strict=True))
    rows = local_rows(value)
    return None if replica or not rows.tensor.numel() else rows


def local_rows(value: Tensor) -> Rows:
    """Return the rows of a tensor that this process holds. A scalar counts as one row.

    The process holds all rows of a tensor that is not sharded.
    """
    total = len(value) if value.ndim else 1
    if not isinstance(value, DTensor):
        return Rows(value, 0, total)
    assert all(placement.is_replicate() or placement.is_shard(0) for placement in value.placements), value.placements
    # Private API: a DTensor has no public method for the position of its rows.
    _, first = compute_local_shape_and_global_offset(value.shape, value.device_mesh, value.placements)
    return Rows(value.to_local(), first[0] if first else 0, total)


def write_tensors(tensors: Mapping[str, Rows], file: Path) -> None:
    """Write one file.

    Raises:
        OSError: The file cannot be written.
    """
    rows = {name: [v.first, v.total] for name, v in tensors.items() if v.tensor.ndim and len(v.tensor) != v.total}
    local = {name: value.tensor.detach().contiguous() for name, value in tensors.items()}
    try:
        save_tensors(local, file, {"rows": json.dumps(rows)} if rows else None)
    except SafetensorError as error:
        raise OSError(f"{one_line(error)}: '{file}'") from error


class ShardedTensors:
    """The tensors of one stem in a folder, in however many files. Iterating gives their names.

    Files are mapped into memory: a tensor is read when it is asked for.

    Args:
        folder: The folder.
        stem: The name of the files without rank and ending.

    Raises:
        UserError: A file is missing or cannot be read.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self.file = folder / f"{stem}{SUFFIX}"  # in messages it stands for all files of the stem
        files = [self.file] if self.file.exists() else sorted(folder.glob(f"{stem}-*-of-*{SUFFIX}"))
        self._pieces: dict[str, list[tuple[Any, int, int]]] = {}  # name -> (opened file, first row, total rows)
        for file in files or [self.file]:
            try:
                opened = open_tensors(file)
            except (OSError, SafetensorError) as error:
                raise UserError(f"cannot read '{file}': {one_line(error)}") from error
            rows = _rows(opened, file)
            for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                shape = opened.get_slice(name).get_shape()
                first, total = rows.get(name, (0, shape[0] if shape else 1))
                if not 0 <= first <= first + (shape[0] if shape else 1) <= max(total, 1):
                    raise UserError(f"cannot read '{file}': {name} has rows from {first} of {total}")
                self._pieces.setdefault(name, []).append((opened, first, total))

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __getitem__(self, name: str) -> Tensor:
        """Return the complete tensor. Raise UserError if rows are missing."""
        return self.rows(name, 0, self._pieces[name][0][2])

    def rows(self, name: str, first: int, count: int) -> Tensor:
        """Read some rows of a tensor, and nothing else.

        Args:
            name: The name of the tensor.
            first: The first row.
            count: The number of rows. A scalar is returned whatever the rows.

        Raises:
            UserError: Some of these rows are in no file.
        """
        found: list[Tensor] = []
        for opened, start, _ in sorted(self._pieces[name], key=lambda piece: piece[1]):
            piece = opened.get_slice(name)
            if not (shape := piece.get_shape()):
                return cast(Tensor, opened.get_tensor(name))
            begin, end = max(first - start, 0), min(first + count - start, shape[0])
            if begin < end or not (count or found):  # of no rows the shape is still wanted, [0, ...]
                found.append(piece[begin:end] if count else piece[:0])
        if sum(map(len, found)) != count:
            raise UserError(f"'{self.file}': rows of {name} are missing")
        return found[0] if len(found) == 1 else torch.cat(found)

    def like(self, name: str, other: Tensor) -> Tensor:
        """Load a tensor onto the device of `other`. If it has as many rows as `other`, shard it in the same way."""
        if not isinstance(other, DTensor) or self._shape(name)[:1] != list(other.shape[:1]):
            return self[name].to(other.device)
        local = local_rows(other)
        return shard_like(self.rows(name, local.first, len(local.tensor)), other)

    def check(self, into: Mapping[str, Tensor], frozen_names: Container[str] = ()) -> None:
        """Check that names, shapes and kinds of dtype are those of other tensors.

        Args:
            into: The tensors, by name.
            frozen_names: Names that may be in the files though `into` has no place for them.

        Raises:
            RuntimeError: A name or a shape differs.
            UserError: A dtype is of another kind, such as whole numbers for weights.
        """
        unknown = [name for name in self if name not in into and name not in frozen_names]
        if missing := [name for name in into if name not in self._pieces]:
            raise RuntimeError(f"'{self.file}' lacks {options(missing)}")
        if unknown:
            raise RuntimeError(f"'{self.file}' has {options(unknown)}, which the network has not")
        for name, target in into.items():
            if (shape := self._shape(name)) != list(target.shape):
                raise RuntimeError(f"'{self.file}': {name} is {shape}, the network's is {list(target.shape)}")
            if not fits(kind := self.facts(name)[1], target.dtype):
                raise UserError(f"'{self.file}': {name} is of {kind}, the network's is of {target.dtype}")

    def load(self, into: Mapping[str, Tensor], frozen_names: Container[str] = (), masks: Container[str] = ()) -> None:
        """Copy every tensor into the tensor of its name, in place.

        Args:
            into: As for `check`.
            frozen_names: As for `check`.
            masks: The names of tensors that may hold minus infinity.

        Raises:
            RuntimeError: As for `check`.
            UserError: As for `check`. Or a number is not finite in the dtype of its place.
        """
        self.check(into, frozen_names)
        for name, target in into.items():
            local = local_rows(target.detach())  # the target's own memory, so that the copy fills the target in place
            if local.tensor.numel():
                rows = self.rows(name, local.first, len(local.tensor) if target.ndim else 1).to(target.dtype)
                if not is_finite(rows, name in masks):
                    raise UserError(f"'{self.file}': {name} is not finite")
                local.tensor.copy_(rows)

    def facts(self, name: str) -> tuple[list[int], torch.dtype]:
        """Return the shape of the complete tensor, and its dtype. Raise UserError if its pieces do not fit together."""
        pieces = [opened.get_slice(name) for opened, *_ in self._pieces[name]]
        shapes, dtypes = {tuple(piece.get_shape()[1:]) for piece in pieces}, {piece.get_dtype() for piece in pieces}
        if len({total for *_, total in self._pieces[name]}) > 1 or len(shapes) > 1 or len(dtypes) > 1:
            raise UserError(f"'{self.file}': the pieces of {name} do not fit together")
        opened, piece = self._pieces[name][0][0], pieces[0]
        some = piece[:0] if piece.get_shape() else opened.get_tensor(name)
        return self._shape(name), some.dtype

    def _shape(self, name: str) -> list[int]:
        """Return the shape of the complete tensor."""
        opened, _, total = self._pieces[name][0]
        shape = opened.get_slice(name).get_shape()
        return [total, *shape[1:]] if shape else []


def _rows(opened: Any, file: Path) -> dict[str, tuple[int, int]]:
    """Return (first row, total rows) of the tensors of which a file holds some rows, by name."""
    try:
        rows = parse_record((opened.metadata() or {}).get("rows", "{}"), dict[str, tuple[Count, Count]])
        return cast(dict[str, tuple[int, int]], rows)
    except ValueError as error:
        raise UserError(f"cannot read '{file}': its rows are damaged: {one_line(error)}") from error
