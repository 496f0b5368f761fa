"""Tensors that several processes wrote are read by any number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.errors import UserError
from trainers.checkpoints import tensor_files
from trainers.checkpoints.tensor_files import Contents, Rows, ShardedTensors, file_name, tensors_of_rank

TENSORS = {
    "large": torch.arange(600.0).view(20, 30),
    "bf16": torch.arange(8, dtype=torch.bfloat16).view(2, 2, 2),
    "scalar": torch.tensor(3.0, dtype=torch.float64),
    "empty": torch.zeros(0, 4),
    **{f"small {i}": torch.full((10,), float(i)) for i in range(10)},
}


def split(world: int) -> list[list[int]]:
    """Where the rows of a sharded tensor of 7 begin and end, as FSDP has them."""
    return [[min(7, r * -(-7 // world)), min(7, (r + 1) * -(-7 // world))] for r in range(world)]


def write_all(folder: Path, world: int, whole: Tensor) -> list[int]:
    """TENSORS, and one of which each process has rows; the bytes that each wrote."""
    written = []
    for rank, (first, last) in enumerate(split(world)):
        contents: dict[str, dict[str, Tensor | Rows]] = {"a": {**TENSORS}, "b": {}}
        if first < last:
            contents["b"]["sharded"] = Rows(whole[first:last], first, 7)
        total = 0
        for stem, tensors in tensors_of_rank(contents, rank, world).items():
            tensor_files.write_tensors(tensors, folder / file_name(stem, rank, world))
            total += sum(rows.tensor.nbytes for rows in tensors.values())
        written.append(total)
    return written


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_what_any_number_wrote_is_read_whole_and_in_rows(world: int, tmp_path: Path) -> None:
    whole = torch.arange(21.0).view(7, 3)
    write_all(tmp_path, world, whole)
    stem = ShardedTensors(tmp_path, "a")
    assert set(stem) == set(TENSORS)
    for name, value in TENSORS.items():
        assert torch.equal(stem[name], value) and stem[name].dtype == value.dtype
    other = ShardedTensors(tmp_path, "b")
    assert torch.equal(other["sharded"], whole)
    for first in range(7):
        for last in range(first + 1, 8):
            assert torch.equal(other.rows("sharded", first, last - first), whole[first:last])
    into = {name: torch.zeros_like(value) for name, value in TENSORS.items()}
    stem.load(into)
    assert all(torch.equal(into[name], value) for name, value in TENSORS.items())


def test_one_process_writes_plain_files(tmp_path: Path) -> None:
    write_all(tmp_path, 1, torch.ones(7, 2))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]
    assert set(load_file(tmp_path / "a.safetensors")) == set(TENSORS)


def test_every_process_writes_its_share_and_each_tensor_is_written_once(tmp_path: Path) -> None:
    contents: Contents = {f"{i}": {f"{j}": torch.zeros(10 + 7 * i + j) for j in range(20)} for i in range(4)}
    total = sum(value.nbytes for tensors in contents.values() for value in tensors.values())  # type: ignore[union-attr]
    for world in (2, 4):
        shares = [tensors_of_rank(contents, rank, world) for rank in range(world)]
        sizes = [sum(rows.tensor.nbytes for part in one.values() for rows in part.values()) for one in shares]
        assert sum(sizes) == total and max(sizes) < 1.05 * total / world
        names = sorted((stem, name) for one in shares for stem, part in one.items() for name in part)
        assert names == sorted((stem, name) for stem, tensors in contents.items() for name in tensors)


def test_missing_parts_are_seen(tmp_path: Path) -> None:
    write_all(tmp_path, 2, torch.arange(7.0)[:, None])
    with pytest.raises(UserError, match=r"^cannot read '.*/nothing.safetensors': "):
        ShardedTensors(tmp_path, "nothing")
    (tmp_path / file_name("b", 1, 2)).unlink()
    with pytest.raises(UserError, match=r"b.safetensors': rows of sharded are missing$"):
        ShardedTensors(tmp_path, "b")["sharded"]
    (tmp_path / file_name("a", 0, 2)).write_bytes(b"")
    with pytest.raises(UserError, match=r"^cannot read '.*a-00000-of-00002.safetensors': "):
        ShardedTensors(tmp_path, "a")


@pytest.mark.parametrize(
    ("change", "wrong"),
    [({"more": torch.zeros(1)}, "lacks more"), ({"large": torch.zeros(1, 30)}, r"large is \[20, 30\], .* \[1, 30\]")],
)
def test_another_network_is_refused(change: dict[str, Tensor], wrong: str, tmp_path: Path) -> None:
    write_all(tmp_path, 1, torch.ones(7, 2))
    with pytest.raises(RuntimeError, match=wrong):
        ShardedTensors(tmp_path, "a").load({**TENSORS, **change})
    fewer = {name: value for name, value in TENSORS.items() if name != "bf16"}
    with pytest.raises(RuntimeError, match="has bf16, which the network has not"):
        ShardedTensors(tmp_path, "a").load(fewer)
    ShardedTensors(tmp_path, "a").load(fewer, frozen_names={"bf16"})


@pytest.mark.parametrize(
    ("saved", "wrong"),
    [
        (torch.zeros(7, 2, dtype=torch.int8), "a is of torch.int8, the network's is of torch.float32"),
        (torch.ones(7, 2, dtype=torch.bool), "a is of torch.bool, the network's is of torch.float32"),
        (torch.full((7, 2), float("nan")), "a is not finite"),
        (torch.full((7, 2), 1e300, dtype=torch.float64), "a is not finite"),
    ],
)
def test_an_average_of_other_numbers_is_refused(saved: Tensor, wrong: str, tmp_path: Path) -> None:
    """Averages, adapters and snapshots all are loaded so. What is in the network stays."""
    save_file({"a": saved}, tmp_path / "ema.safetensors")
    into = torch.full((7, 2), 3.0)
    with pytest.raises(UserError, match=f"^'{tmp_path / 'ema.safetensors'}': {wrong}$"):
        ShardedTensors(tmp_path, "ema").load({"a": into})
    assert into.unique().tolist() == [3.0]


def test_another_precision_is_loaded(tmp_path: Path) -> None:
    save_file({"a": torch.full((2,), 0.1, dtype=torch.float64)}, tmp_path / "ema.safetensors")
    into = torch.zeros(2)
    ShardedTensors(tmp_path, "ema").load({"a": into})
    assert torch.equal(into, torch.full((2,), 0.1))
