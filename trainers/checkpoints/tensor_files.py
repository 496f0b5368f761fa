"""Tensors by name on disk, as safetensors: in one file, or shared out over one file a process.

STEM.safetensors is what one process writes, STEM-00000-of-00002.safetensors the first of two. A tensor is whole in one
file, or its rows (dim 0) are in several; a file says in its metadata where its rows begin and how many there are in
all, `rows`: {name: [first, whole]}. Any number of processes reads what any other number wrote, and no code is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from distill.errors import UserError, one_line
from trainers.engine.sharding import shard_like

SUFFIX = ".safetensors"


class Rows(NamedTuple):
    """Rows `first` ... of a tensor that has `whole` of them."""

    tensor: Tensor
    first: int
    whole: int


Contents = Mapping[str, Mapping[str, Tensor | Rows]]
"""{stem: {name: tensor}}; of a sharded one (DTensor) each process has its rows."""


def file_name(stem: str, rank: int, world: int) -> str:
    """The file of process `rank` of `world`."""
    return f"{stem}-{rank:05d}-of-{world:05d}{SUFFIX}" if world > 1 else stem + SUFFIX


def stem_of(name: str) -> str:
    """Return the name of a tensor file without rank and ending: "ema" for "ema-00000-of-00002.safetensors"."""
    return re.sub(r"-\d{5}-of-\d{5}$", "", name.removesuffix(SUFFIX))


def share(contents: Contents, rank: int, world: int) -> dict[str, dict[str, Rows]]:
    """What process `rank` of `world` writes: its rows of sharded tensors, and of those that all have whole ones, such
    that all write about as many bytes."""
    mine: dict[str, dict[str, Rows]] = {stem: {} for stem in contents}
    dealt, load = [], [0] * world
    for stem, tensors in contents.items():
        for name, value in tensors.items():
            if isinstance(value, Tensor) and not isinstance(value, DTensor):
                dealt.append((-value.nbytes, stem, name, value))
            elif (rows := own_rows(value)) is not None:
                mine[stem][name] = rows
    for size, stem, name, value in sorted(dealt, key=lambda one: one[:3]):
        owner = load.index(min(load))
        load[owner] -= size
        if owner == rank:
            mine[stem][name] = _all(value)
    return {stem: rows for stem, rows in mine.items() if rows or rank == 0}


def own_rows(value: Tensor | Rows) -> Rows | None:
    """The rows of `value` that this process writes; None where another one does, or there are none."""
    if not isinstance(value, DTensor):
        return value if isinstance(value, Rows) else _all(value)
    mesh = value.device_mesh
    coordinates = mesh.get_coordinate() or [0] * mesh.ndim
    copy = any(c and placement.is_replicate() for c, placement in zip(coordinates, value.placements, strict=True))
    rows = local_rows(value)
    return None if copy or not rows.tensor.numel() else rows


def local_rows(value: Tensor) -> Rows:
    """The rows of `value` that are here: all, unless it is sharded."""
    if not isinstance(value, DTensor):
        return _all(value)
    assert all(placement.is_replicate() or placement.is_shard(0) for placement in value.placements), value.placements
    _, first = compute_local_shape_and_global_offset(value.shape, value.device_mesh, value.placements)
    return Rows(value.to_local(), first[0] if first else 0, len(value) if value.ndim else 1)


def _all(value: Tensor) -> Rows:
    return Rows(value, 0, len(value) if value.ndim else 1)


def write_tensors(tensors: Mapping[str, Rows], file: Path) -> None:
    """Write one file; raises OSError when that fails."""
    rows = {name: [v.first, v.whole] for name, v in tensors.items() if v.tensor.ndim and len(v.tensor) != v.whole}
    plain = {name: value.tensor.detach().contiguous() for name, value in tensors.items()}
    try:
        save_file(plain, file, {"rows": json.dumps(rows)} if rows else None)
    except SafetensorError as error:
        raise OSError(f"{one_line(error)}: '{file}'") from error


class ShardedTensors:
    """The tensors of one stem in a folder, by whatever number of processes they were written.

    Raises UserError when a file is missing or cannot be read, or rows are missing.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self.where = folder / f"{stem}{SUFFIX}"
        files = [self.where] if self.where.exists() else sorted(folder.glob(f"{stem}-*-of-*{SUFFIX}"))
        self._pieces: dict[str, list[tuple[Any, int, int]]] = {}
        for file in files or [self.where]:
            try:
                opened: Any = safe_open(file, "pt")  # its methods lack annotations
            except (OSError, SafetensorError) as error:
                raise UserError(f"cannot read '{file}': {one_line(error)}") from error
            rows = json.loads((opened.metadata() or {}).get("rows", "{}"))
            for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                shape = opened.get_slice(name).get_shape()
                first, whole = rows.get(name, (0, shape[0] if shape else 1))
                self._pieces.setdefault(name, []).append((opened, first, whole))

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __getitem__(self, name: str) -> Tensor:
        """The whole tensor."""
        return self.rows(name, 0, self._pieces[name][0][2])

    def rows(self, name: str, first: int, count: int) -> Tensor:
        """Rows `first` ... `first + count - 1` of a tensor; nothing else is read."""
        found: list[Tensor] = []
        for opened, start, _ in sorted(self._pieces[name], key=lambda piece: piece[1]):
            piece = opened.get_slice(name)
            if not (shape := piece.get_shape()):
                return cast(Tensor, opened.get_tensor(name))
            begin, end = max(first - start, 0), min(first + count - start, shape[0])
            if begin < end or not (count or found):
                found.append(piece[begin:end] if count else piece[:0])
        if sum(map(len, found)) != count:
            raise UserError(f"'{self.where}': rows of {name} are missing")
        return found[0] if len(found) == 1 else torch.cat(found)

    def like(self, name: str, other: Tensor) -> Tensor:
        """The tensor on the device of `other`, and sharded as that is where it has as many rows."""
        if not isinstance(other, DTensor) or self._shape(name)[:1] != list(other.shape[:1]):
            return self[name].to(other.device)
        here = local_rows(other)
        return shard_like(self.rows(name, here.first, len(here.tensor)), other)

    def check(self, into: Mapping[str, Tensor], frozen_names: Container[str] = ()) -> None:
        """Raise RuntimeError when names or shapes are not those of `into`; names of `frozen_names` need no place."""
        unknown = [name for name in self if name not in into and name not in frozen_names]
        if missing := [name for name in into if name not in self._pieces]:
            raise RuntimeError(f"'{self.where}' lacks {', '.join(missing[:3])}")
        if unknown:
            raise RuntimeError(f"'{self.where}' has {', '.join(unknown[:3])}, which the network has not")
        for name, target in into.items():
            if (shape := self._shape(name)) != list(target.shape):
                raise RuntimeError(f"'{self.where}': {name} is {shape}, the network's is {list(target.shape)}")

    def load(self, into: Mapping[str, Tensor], frozen_names: Container[str] = ()) -> None:
        """Copy every tensor into the tensor of its name, in place; raises RuntimeError as `check` does."""
        self.check(into, frozen_names)
        for name, target in into.items():
            here = local_rows(target.detach())
            if here.tensor.numel():
                here.tensor.copy_(self.rows(name, here.first, len(here.tensor) if target.ndim else 1))

    def _shape(self, name: str) -> list[int]:
        opened, _, whole = self._pieces[name][0]
        shape = opened.get_slice(name).get_shape()
        return [whole, *shape[1:]] if shape else []
