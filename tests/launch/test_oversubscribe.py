"""No more processes than the machine has cores or GPUs are started, unless the caller says so."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import trainers
from distill.errors import UserError
from launch.commands import train
from launch.processes import check_count
from tests.launch.conftest import Command
from tests.tiny import recipe
from trainers.checkpoints import checkpoint
from trainers.engine import world


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine of two cores, or of other numbers."""

    def set_size(cores: int, gpus: int = 0) -> None:
        monkeypatch.setattr(world.os, "sched_getaffinity", lambda process: set(range(cores)))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)

    set_size(2)
    return set_size


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments of the processes that would have been started."""
    calls: list[Any] = []

    def start(*arguments: Any) -> None:
        calls.append(arguments)
        raise SystemExit(0)

    monkeypatch.setattr(train, "start_workers", start)
    return calls


@pytest.mark.parametrize("command", ["train", "teacher"])
@pytest.mark.parametrize("count", [3, 1_000_000])
def test_more_than_the_cores_are_refused(
    command: str,
    count: int,
    distill: Command,
    recipe_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before a process is started, data are read, or a folder is made."""
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **options: pytest.fail("a process was started"))
    file = recipe_file(trains="teacher") if command == "teacher" else recipe_file(batch_size=count)
    result = distill(command, file, "--processes", count, "--folder", tmp_path / "run")
    assert result.code == 2 and result.err == (
        f"distill: --processes: {count} asked for, this machine has 2 cores;"
        f" --oversubscribe starts {count} all the same\n"
    )
    assert not (tmp_path / "run").exists()


def test_as_many_as_the_cores_are_started(
    distill: Command, recipe_file: Callable[..., Path], started: list[Any], tmp_path: Path, machine: Callable[..., None]
) -> None:
    file = recipe_file()
    expected = ["train", str(file), "--folder", str(tmp_path / "run"), "--processes"]
    assert distill("train", file, "--processes", 2, "--folder", tmp_path / "run").code == 0
    assert distill("train", file, "--processes", 4, "--oversubscribe", "--folder", tmp_path / "run").code == 0
    machine(1)
    assert distill("train", file, "--processes", 2, "--folder", tmp_path / "run").code == 2
    assert started == [(2, [*expected, "2"]), (4, [*expected, "4"])]


def test_gpus_are_not_shared(machine: Callable[..., None]) -> None:
    machine(64, gpus=4)
    check_count(4, False)
    for oversubscribe in (False, True):
        with pytest.raises(UserError, match=r"^--processes: 5 asked for, this machine has 4 GPUs$"):
            check_count(5, oversubscribe)


def test_a_launcher_of_others_decides_by_itself(
    distill: Command, recipe_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """torchrun has started 64 processes already, here or on other machines."""
    monkeypatch.setenv("WORLD_SIZE", "64")
    monkeypatch.setattr(train, "join_world", lambda processes, run, folder: pytest.fail(f"joined {processes}"))
    with pytest.raises(pytest.fail.Exception, match="joined 64"):
        distill("train", recipe_file(), "--processes", 64, "--folder", tmp_path / "run")


@pytest.mark.parametrize(
    ("before", "size", "line"),
    [
        (8, (2,), "2 cores; --processes 2 goes on with the same samples; --oversubscribe starts 8 all the same"),
        (8, (1,), "1 core; --processes 1 goes on with the same samples; --oversubscribe starts 8 all the same"),
        (8, (64, 3), "3 GPUs; --processes 2 goes on with the same samples"),
        (
            10**12,
            (7,),
            "7 cores; --processes 4 goes on with the same samples; --oversubscribe starts 1000000000000 all",
        ),
    ],
)
def test_a_resume_starts_no_more_than_there_are(
    before: int,
    size: tuple[int, ...],
    line: str,
    distill: Command,
    student: Path,
    started: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    machine: Callable[..., None],
) -> None:
    """A number that divides the batch of 8 is proposed."""
    read = checkpoint.read_state
    monkeypatch.setattr(checkpoint, "read_state", lambda folder: {**read(folder), "processes": before})
    machine(*size)
    result = distill("resume", student)
    assert result.code == 2 and result.err.count("\n") == 1
    assert result.err.startswith(
        f"distill: --processes: the checkpoint was saved by {before} processes, this machine has {line}"
    )
    asked = distill("resume", student, "--processes", 65)
    assert asked.code == 2 and asked.err.startswith("distill: --processes: 65 asked for, this machine has ")
    assert started == []
    if size[0] > 1:
        assert distill("resume", student, "--processes", 2).code == 0
        assert started == [(2, ["resume", str(student), "--processes", "2"])]


def test_the_functions_refuse_likewise(teachers: Path, tmp_path: Path) -> None:
    """The command that they start says so, of the machine as it is."""
    with pytest.raises(UserError, match=r"^--processes: 10000 asked for, this machine has \d+ (cores?|GPUs)"):
        trainers.train(recipe(teachers / "edm", batch_size=10_000), tmp_path / "run", 10_000)
    assert not (tmp_path / "run").exists()
