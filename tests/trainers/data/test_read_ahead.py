"""Samples that worker processes read ahead: the same bits as without, one line when one dies, and nothing is left."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from distill.errors import UserError
from tests.tiny import build_session, distillation, experiment, fit_run, launch, recipe, teacher_recipe
from trainers import loop
from trainers.data import Dataset, Images, sources
from trainers.data.batches import Batches, BatchSizes
from trainers.data.read_ahead import Request
from trainers.engine.session import Session
from trainers.engine.step import advance
from trainers.hooks import Hook


@pytest.fixture(autouse=True)
def on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_DECODED_BYTES", 0)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def pictures(place: Path, count: int = 40) -> Path:
    """A folder of grey pictures of 8x8 random pixels, four in each of 10 classes."""
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (count, 8, 8), dtype=np.uint8)):
        (place / str(number % 10)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / str(number % 10) / f"{number}.png")
    return place


def zipped(place: Path) -> Path:
    with zipfile.ZipFile(place.with_suffix(".zip"), "w") as archive:
        for file in sorted(pictures(place).rglob("*.png")):
            archive.write(file, file.relative_to(place))
    return place.with_suffix(".zip")


def packed(place: Path) -> Path:
    with tarfile.open(place.with_suffix(".tar"), "w") as archive:
        archive.add(pictures(place), ".")
    return place.with_suffix(".tar")


def load(place: Path, **settings: Any) -> Dataset:
    return Images(str(place), resolution=8, mode="L", **settings).load()


def in_turn(first: int = 0) -> Iterator[Request]:
    while True:
        yield from (Request(stream, first, micro) for stream in ("fake", "generator") for micro in range(2))
        first += 24


def batches(dataset: Dataset, workers: int, seed: int = 0) -> Batches:
    found = Batches(dataset, BatchSizes(24, 2), seed, torch.float32, True, 0, 1, torch.device("cpu"), workers=workers)
    found.upcoming = in_turn
    return found


def real(source: Batches, request: Request) -> Tensor:
    found = source.micro(*request).real
    assert found is not None and found.dtype == torch.float32
    return found


@pytest.mark.parametrize("make", [pictures, zipped, packed])
def test_workers_give_the_same_bits(make: Callable[[Path], Path], tmp_path: Path) -> None:
    """Also across epochs, and where the loop asks for what was not expected."""
    dataset = load(make(tmp_path / "set"))
    assert dataset.on_demand
    asked = [*islice(in_turn(), 8), *islice(in_turn(240), 3), Request("probe", 5, 1), *islice(in_turn(48), 9)]
    del asked[14]  # a fake update fewer
    alone = batches(dataset, 0)
    expected = torch.stack([real(alone, request) for request in asked])
    assert expected.unique().numel() > 200
    for workers in (1, 4, 8):
        source = batches(dataset, workers)
        assert torch.equal(torch.stack([real(source, request) for request in asked]), expected)
        assert len(multiprocessing.active_children()) == workers
        source.close()
        assert not multiprocessing.active_children()


def test_what_is_coming_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    source, coming = batches(load(pictures(tmp_path / "set")), 2), [*islice(in_turn(), 5)]
    for number, request in enumerate(coming[:3]):
        real(source, request)
        assert source._ahead is not None
        assert [one for one, _ in source._ahead.pending] == coming[number + 1 : number + 3]
    source.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_read_for_a_loss_that_reads_no_real_samples(workers: int, tmp_path: Path) -> None:
    """Noise and conditions of the generator's batches stay."""
    dataset, asked = load(pictures(tmp_path / "set")), [*islice(in_turn(), 8)]
    every, some = batches(dataset, workers), replace(batches(dataset, workers), generator_real=False)
    read: list[int] = []
    for request in asked:
        whole, part = every.micro(*request), some.micro(*request)
        assert whole.real is not None and torch.equal(part.noise, whole.noise)
        assert part.cond.keys() == whole.cond.keys() and all(
            torch.equal(part.cond[k], whole.cond[k]) for k in part.cond
        )
        if request.stream == "generator":
            assert part.real is None
        else:
            assert part.real is not None and torch.equal(part.real, whole.real)
        if some._ahead is not None:
            read += [one.stream == "generator" for one, _ in some._ahead.pending]
    assert not any(read) and bool(read) == bool(workers)
    every.close()
    some.close()


def test_data_in_memory_start_no_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_DECODED_BYTES", 40 * 64)
    source = batches(load(pictures(tmp_path / "set")), 4)
    real(source, Request("fake", 0, 0))
    assert not multiprocessing.active_children()


def test_a_worker_has_one_thread_and_leaves_signals_to_the_run(tmp_path: Path) -> None:
    source = batches(load(pictures(tmp_path / "set")), 1)
    real(source, Request("fake", 0, 0))
    assert source._ahead is not None and source._ahead.pool.submit(torch.get_num_threads).result() == 1
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(worker.pid, number)
    real(source, Request("generator", 480, 1))
    assert [one.pid for one in multiprocessing.active_children()] == [worker.pid]
    source.close()


def test_workers_end_with_the_process_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import multiprocessing, time, torch; from trainers.data.read_ahead import ReadAhead, Request\n"
        "ahead = ReadAhead(lambda at: at, lambda _: torch.arange(4), lambda: iter(()), 2)\n"
        "ahead.take(Request('a', 0, 0)); print(*(one.pid for one in multiprocessing.active_children()), flush=True)\n"
        "time.sleep(100)"
    )
    job = launch(["-c", program], tmp_path / "out")
    assert job.wait_for(lambda: job.text.endswith("\n"))
    workers = [int(word) for word in job.text.split()]
    assert len(workers) == 2 and all(map(exists, workers))
    os.kill(job.processes[0].pid, signal.SIGKILL)  # the parent alone, not its group
    job.processes[0].wait()
    end = time.monotonic() + 30
    while any(map(exists, workers)) and time.monotonic() < end:
        time.sleep(0.01)
    assert not any(map(exists, workers))


def exists(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait for its parent."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_picture_that_is_lost_is_named(tmp_path: Path) -> None:
    place = pictures(tmp_path / "set")
    source = batches(load(place), 2)
    for file in place.rglob("*.png"):
        file.unlink()
    with pytest.raises(UserError, match=r"^data: .*/set/\d/\d+\.png is missing$"):
        real(source, Request("fake", 0, 0))
    source.close()


class Kill(Hook):
    """Kills a worker once, at an image count."""

    def __init__(self, at: int) -> None:
        self.every, self.at = 1, at

    def due(self, before: int, now: int, total: int) -> bool:
        return now == self.at

    def __call__(self, session: Session) -> None:
        ahead = session.batches._ahead
        assert ahead is not None
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
        while not ahead.pool._broken:  # type: ignore[attr-defined]  # the pool notices it on a thread of its own
            time.sleep(0.01)


def test_a_killed_worker_ends_the_run_which_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line; and what is trained afterwards is what it would have been, with another number of workers."""
    data = {"name": "images", "path": str(pictures(tmp_path / "set")), "resolution": 8, "mode": "L"}
    settings = teacher_recipe(data=data, workers=2, images=48)
    whole = fit_run({**settings, "workers": 0}, tmp_path / "whole")
    with monkeypatch.context() as patch:
        hooks_of = loop.hooks_of
        patch.setattr(loop, "hooks_of", lambda *arguments: [*hooks_of(*arguments), Kill(32)])
        with pytest.raises(UserError, match=r"^workers: a process that reads samples ended, .*workers=0") as caught:
            fit_run(settings, tmp_path / "killed")
    assert "\n" not in str(caught.value) and not multiprocessing.active_children()
    session = fit_run({**settings, "workers": 3}, tmp_path / "killed", resume=True)
    assert session.state.images == 48 and not multiprocessing.active_children()
    expected, weights = whole.model.state_dict(), session.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fake_updates": 3, "micro_batches": 2},
        {"fake_updates": 3, "reuse_samples": True},
        {"fake_updates": 3, "reuse_samples": "all"},
        {"fake_warmup": 16, "fake_updates": 2},
        {"fake_warmup": {"images": 16, "until": 1e9, "most": 80}, "micro_batches": 2},
        {"fake_updates": "auto"},
        {"objective": {"name": "sida", "generator_from": 24}},
    ],
)
def test_rounds_ask_for_what_was_foreseen(
    changes: dict[str, Any], teachers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = build_session(distillation("dmd2", teachers, **{"fake_updates": 1, **changes}))
    asked = recorded(session, monkeypatch)
    foreseen = [*islice(session.batches.upcoming(), 40)]
    for _ in range(4):
        begin, expected = len(asked), [*islice(session.batches.upcoming(), 20)]
        advance(session)
        assert asked[begin:] and asked[begin:] == expected[: len(asked) - begin]
    if session.state.pace is None:
        assert asked == foreseen[: len(asked)]


def test_a_teacher_asks_for_what_was_foreseen(monkeypatch: pytest.MonkeyPatch) -> None:
    session = build_session(teacher_recipe(micro_batches=2))
    asked, expected = recorded(session, monkeypatch), [*islice(session.batches.upcoming(), 6)]
    for _ in range(3):
        advance(session)
    assert asked == expected


def recorded(session: Session, monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests of a session, as they come."""
    asked, micro = list[Request](), session.batches.micro

    def note(*request: Any) -> Any:
        asked.append(Request(*request))
        return micro(*request)

    monkeypatch.setattr(session.batches, "micro", note)
    return asked


@pytest.mark.parametrize("workers", [-1, 65])
def test_a_number_of_workers_out_of_range_is_refused(workers: int) -> None:
    with pytest.raises(UserError, match=f"workers: must be from 0 to 64, got {workers}"):
        experiment(recipe("unused", workers=workers))
