"""Tables on disk: computed once, whatever is killed, damaged or started twice."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from rich.console import Console
from torch import Tensor

from distill.errors import UserError
from distill.saved_files import load_tensors, tensor_bytes
from tests.texts import embedding, write_text_teacher
from tests.tiny import launch
from trainers.data.cache import Cache, Table, receipt_of
from trainers.io import atomic

QUIET = Console(quiet=True)


def numbers(calls: list[tuple[int, int]]) -> Callable[[int, int], dict[str, Tensor]]:
    """Rows that show their number; notes what it is asked for."""

    def make(first: int, last: int) -> dict[str, Tensor]:
        calls.append((first, last))
        at = torch.arange(first, last)
        return {"number": at, "half": (at[:, None] + torch.zeros(2)).to(torch.bfloat16) / 2}

    return make


def table(root: Path, calls: list[tuple[int, int]], **origin: Any) -> Table:
    return Cache(root, QUIET).table("numbers", {"of": "a test", **origin}, 11, 4, numbers(calls))


def folder(root: Path) -> Path:
    (found,) = (root / "numbers").iterdir()
    return found


def shards(root: Path) -> list[Path]:
    return sorted(folder(root).glob("*.safetensors"))


ALL = [(0, 4), (4, 8), (8, 11)]


def test_rows_come_back_bit_for_bit(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    for found in (table(tmp_path, calls), table(tmp_path, calls)):
        assert calls == ALL and found.count == 11
        at = torch.tensor([10, 0, 4, 3, 4])
        rows = found.rows(at)
        assert torch.equal(rows["number"], at)
        assert torch.equal(rows["half"], (at[:, None] + torch.zeros(2)).to(torch.bfloat16) / 2)
        assert found.rows(at, "number").keys() == {"number"}
    assert len(shards(tmp_path)) == 3
    assert json.loads((folder(tmp_path) / "origin.json").read_text()) == {"of": "a test", "count": 11, "shard": 4}


def test_another_origin_is_another_table(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    for origin in ({}, {"of": "another"}, {"dtype": "bfloat16"}, {}):
        table(tmp_path, calls, **origin)
    assert calls == ALL * 3 and len(list((tmp_path / "numbers").iterdir())) == 3


def test_it_needs_no_right_to_write_once_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(tmp_path, [])
    read = os.open

    def open_for_reading(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        assert not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT), "it writes"
        return read(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", open_for_reading)
    for name in ("replace", "mkdir"):
        monkeypatch.setattr(os, name, lambda *a, **k: pytest.fail("it writes"))
    table(tmp_path, [])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "flipped bit": flip,
    "truncated": lambda file: os.truncate(file, file.stat().st_size - 1),
    "empty": lambda file: os.truncate(file, 0),
    "missing": Path.unlink,
    "no receipt": lambda file: receipt_of(file).unlink(),
    "empty receipt": lambda file: receipt_of(file).write_text(""),
    "wrong receipt": lambda file: receipt_of(file).write_text("[1]"),
    "deep receipt": lambda file: receipt_of(file).write_text("[" * 200_000),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "a receipt that is a pipe": lambda file: (receipt_of(file).unlink(), os.mkfifo(receipt_of(file))),
    "fewer rows": lambda file: replace(file, {name: value[:-1].clone() for name, value in load_tensors(file).items()}),
    "no tensors but a right receipt": lambda file: forge(file, b"\0" * 100),
}


def forge(file: Path, content: bytes) -> None:
    """Write a shard with a receipt that matches it."""
    file.write_bytes(content)
    stat = file.stat()
    receipt = {"bytes": stat.st_size, "time": stat.st_mtime_ns, "sha256": atomic.sha256(file)}
    receipt_of(file).write_text(json.dumps(receipt))


def replace(file: Path, columns: dict[str, Tensor]) -> None:
    forge(file, tensor_bytes(columns))


FORGED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "another shape": (lambda value: value[..., None].clone(), "column '.*' of shard 1 has another form$"),
    "another dtype": (lambda value: value.to(torch.int8), "column '.*' of shard 1 has another form$"),
}


@pytest.mark.parametrize("how", FORGED)
def test_shards_that_do_not_fit_together_are_refused(how: str, tmp_path: Path) -> None:
    table(tmp_path, [])
    change, message = FORGED[how]
    file = sorted(tmp_path.rglob("*.safetensors"))[1]
    replace(file, {name: change(value) for name, value in load_tensors(file).items()})
    with pytest.raises(UserError, match=f"^'{file.parent}': {message}"):
        table(tmp_path, [])


def test_rows_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "table"
    shards = ({"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([float("nan")])})
    made = Table(3, shards, folder)
    assert made.rows(torch.tensor([1, 0]))["a"].tolist() == [2.0, 1.0]
    with pytest.raises(UserError, match=rf"^'{folder}': column 'a' is not finite in rows \[0, 2\]$"):
        made.rows(torch.tensor([0, 2]))
    for count in (2, 4):
        with pytest.raises(UserError, match=f"^'{folder}': "):
            Table(count, shards, folder)


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_shard_alone_is_computed_again(how: str, tmp_path: Path) -> None:
    table(tmp_path, [])
    whole = {file.name: file.read_bytes() for file in shards(tmp_path)}
    DAMAGE[how](shards(tmp_path)[1])
    calls: list[tuple[int, int]] = []
    table(tmp_path, calls)
    assert calls == [(4, 8)]
    assert {file.name: file.read_bytes() for file in shards(tmp_path)} == whole
    table(tmp_path, calls)
    assert calls == [(4, 8)]


def test_an_origin_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    """A process that came later and was killed would leave a half-written one, since nothing is missing then."""
    table(tmp_path, [])
    before = (folder(tmp_path) / "origin.json").stat()
    shards(tmp_path)[0].unlink()
    table(tmp_path, [])
    after = (folder(tmp_path) / "origin.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_copied_cache_is_as_good(tmp_path: Path) -> None:
    """Times are those of the copy: hashes decide."""
    table(tmp_path, [])
    for file in shards(tmp_path):
        os.utime(file, ns=(1, 1))
    calls: list[tuple[int, int]] = []
    table(tmp_path, calls)
    assert calls == []


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", range(21))
def test_a_kill_at_any_moment_loses_one_shard(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every sync and renaming into place, of the origin, of 3 shards and of their receipts."""
    count, first, again = 0, list[tuple[int, int]](), list[tuple[int, int]]()

    def kill(call: Callable[..., Any]) -> Callable[..., Any]:
        def killing(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count == at + 1:
                raise Killed
            return call(*arguments)

        return killing

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "sync", kill(atomic.sync))
        patch.setattr(atomic.os, "replace", kill(atomic.os.replace))
        with pytest.raises(Killed):
            table(tmp_path, first)
    found = table(tmp_path, again)
    assert torch.equal(found.rows(torch.arange(11))["number"], torch.arange(11))
    assert set(first + again) == set(ALL) and len(first + again) <= 4


@pytest.mark.parametrize("dies", [False, True])
def test_what_another_is_at_is_waited_for(dies: bool, tmp_path: Path) -> None:
    """The first shard is another's: the rest is computed meanwhile; then it is there, or its maker has died."""
    table(tmp_path, [])
    kept = {receipt_of(file): receipt_of(file).read_bytes() for file in shards(tmp_path)}
    for file in kept:
        file.unlink()
    held, calls = threading.Event(), list[tuple[int, int]]()

    def hold() -> None:  # on a thread of its own: filelock refuses to wait for a lock of the same thread
        lock = FileLock(shards(tmp_path)[0].with_suffix(".lock"))
        lock.acquire()
        held.set()
        end = time.monotonic() + 20
        while len(calls) < 2 and time.monotonic() < end:
            time.sleep(0.001)
        if not dies:
            first = receipt_of(shards(tmp_path)[0])
            first.write_bytes(kept[first])
        lock.release()

    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(20)
    table(tmp_path, calls)
    other.join()
    assert calls == ([*ALL[1:], ALL[0]] if dies else ALL[1:])


def test_progress_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(stderr=True)
    for _ in range(2):
        Cache(tmp_path, console).table("numbers", {}, 11, 4, numbers([]))
    assert capsys.readouterr().err.splitlines() == [f"numbers: {done} of 11" for done in (4, 8, 11)]


# In processes of their own

PROGRAM = """
import sys, torch, pytest
from tests.texts import install, load_any
from trainers.data import Dataset
from trainers.data.batches import condition_at
from trainers.data.dataset import UNKNOWN
from trainers.data.encode import DatasetEncoder

teacher, cache, count = sys.argv[1:]
install(pytest.MonkeyPatch())
prompts = [f"prompt {number}" for number in range(int(count))]
dataset = Dataset("words", len(prompts), UNKNOWN, None, None, prompts=prompts)
ready = DatasetEncoder(cache, torch.device("cpu")).encode(dataset, load_any(teacher), real=False)
# One write for the whole line, since two processes share the output, unbuffered.
print(f"sum {float(condition_at(ready, torch.arange(len(prompts)))['prompt'].double().sum())}\\n", end="")
"""


def encoded(log: Path) -> list[str]:
    return [line.split(" ", 1)[1] for line in log.read_text().splitlines()]


@pytest.fixture
def job(tmp_path: Path) -> Callable[[int], Any]:
    write_text_teacher(tmp_path / "teacher", tmp_path / "log", pause=0.05)
    (tmp_path / "program.py").write_text(PROGRAM)

    def start(count: int) -> Any:
        program = [str(tmp_path / "program.py"), str(tmp_path / "teacher"), str(tmp_path / "cache"), str(count)]
        return launch(program, tmp_path / "output")

    return start


def total(output: Path) -> list[float]:
    return [float(line.split()[1]) for line in output.read_text().splitlines() if line.startswith("sum ")]


def expected(count: int) -> float:
    return float(sum(embedding(f"prompt {number}").double().sum() for number in range(count)))


def test_kill_9_in_the_middle_loses_one_shard(job: Callable[[int], Any], tmp_path: Path) -> None:
    log = tmp_path / "log"
    first = job(20)
    assert first.wait_for(lambda: log.exists() and len(encoded(log)) >= 7)
    first.kill()
    before = len(encoded(log))
    assert before < 20 and total(tmp_path / "output") == []
    assert job(20).finish() == 0
    twice = [prompt for prompt in set(encoded(log)) if encoded(log).count(prompt) == 2]
    assert len(twice) <= 2 and len(encoded(log)) == 21 + len(twice)
    assert total(tmp_path / "output") == [pytest.approx(expected(20), abs=1e-6)]


def test_two_processes_compute_each_shard_once(job: Callable[[int], Any], tmp_path: Path) -> None:
    jobs = [job(40), job(40)]
    assert [one.finish() for one in jobs] == [0, 0]
    assert sorted(encoded(tmp_path / "log")) == sorted(["", *(f"prompt {number}" for number in range(40))])
    assert total(tmp_path / "output") == [pytest.approx(expected(40), abs=1e-6)] * 2
