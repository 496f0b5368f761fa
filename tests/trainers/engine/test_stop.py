"""A run that is told to stop saves and leaves, and goes on later as if it never had."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from filelock import FileLock

from distill.errors import UserError
from tests.tiny import fit_run, launch, recipe
from trainers import loop
from trainers.checkpoints import checkpoint
from trainers.engine import stopping
from trainers.engine.session import Session
from trainers.engine.stopping import STOP, Stopped
from trainers.evaluation import measure
from trainers.hooks import Log
from trainers.io import jsonl
from trainers.recipe.load import build_experiment

LAST = f"checkpoints/{96:012d}/manifest.json"


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    with STOP.listening():
        yield


def tell(monkeypatch: pytest.MonkeyPatch, at: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal at the log point of `at` images."""
    call = Log.__call__

    def telling(self: Log, session: Session) -> None:
        call(self, session)
        if session.state.images == at:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Log, "__call__", telling)


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_signal_ends_the_update_saves_and_leaves(
    number: signal.Signals, teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, run = recipe(teachers / "edm"), tmp_path / "run"
    with monkeypatch.context() as patch:
        tell(patch, 32, number)
        with pytest.raises(Stopped) as caught:
            fit_run(settings, run)
    name = number.name
    assert str(caught.value) == f"stopped by {name} at 32 images, which are saved: `distill resume {run}` goes on"
    assert int(checkpoint.newest(run / "checkpoints")[0].name) == 32
    assert json.loads((run / "stopped.json").read_text()) == {"images": 32, "by": name}
    STOP._reset()  # as in a process of its own, where nothing is left of the signal
    fit_run(settings, run, resume=True)
    assert not (run / "stopped.json").exists()
    fit_run(settings, tmp_path / "whole")
    assert (run / LAST).read_text() == (tmp_path / "whole" / LAST).read_text()


@pytest.mark.parametrize("at", [40, 96])
def test_a_stop_in_an_evaluation_comes_back_to_it(
    at: int, teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two of its batches; the resume does what was due before it trains on."""
    settings, run = (
        recipe(teachers / "edm", evaluation={"every": 40, "samples": 64}, samples_every=40, health={"every": 40}),
        tmp_path / "run",
    )
    monkeypatch.setattr(measure, "EVALUATED_AT_ONCE", 16)
    fit_run(settings, tmp_path / "whole")
    draw, drawn = measure.draw_samples, 0

    def drawing(*arguments: Any) -> Any:
        nonlocal drawn
        drawn += 1
        if drawn == (2 if at == 40 else 10):
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(measure, "draw_samples", drawing)
        with pytest.raises(Stopped, match=f"^stopped by SIGTERM at {at} images"):
            fit_run(settings, run)
    assert drawn == (2 if at == 40 else 10)
    found = checkpoint.read_state(checkpoint.newest(run / "checkpoints")[0])
    assert found["images"] == at and found["unfinished"][:3] == ["Evaluate", "CompareSamples", "Samples"]
    STOP._reset()
    fit_run(settings, run, resume=True)
    ours, theirs = (jsonl.read(folder / "metrics.jsonl") for folder in (run, tmp_path / "whole"))
    assert ours == theirs and len(ours) == 3
    assert jsonl.read(run / "health.jsonl") == jsonl.read(tmp_path / "whole" / "health.jsonl")
    assert sorted(p.name for p in (run / "samples").iterdir()) == [f"{i:012d}.png" for i in (40, 80, 96)]
    files = [folder / f"checkpoints/{96:012d}/generator.safetensors" for folder in (run, tmp_path / "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_outside_of_training_a_signal_is_obeyed_at_once() -> None:
    with pytest.raises(Stopped, match=r"^stopped by SIGUSR1$"):
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(1)


def test_a_second_interrupt_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Left(Exception):
        pass

    def leave(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(os, "_exit", leave)
    with STOP.deferred(Accelerator(cpu=True)):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # of another kind: it is stopping already
        with pytest.raises(Left) as caught:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        assert caught.value.args == (130,)


def test_the_time_limit_leaves_time_to_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the longest save and the longest update, or a minute; the wall clock may jump."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "time", lambda: -now)
    STOP.limit(500)
    STOP.limit(900)
    with STOP.deferred(Accelerator(cpu=True)):
        for now in (1010.0, 1110.0, 1120.0, 1390.0):  # an update of 100 seconds, then one of 270
            STOP.longest_save = 50.0 if now == 1120 else 0.0
            if now < 1390:
                STOP.poll()
        with pytest.raises(Stopped, match=r"^stopped by the time limit$"):
            STOP.poll()
    STOP._reset()
    STOP.limit(61)
    with STOP.deferred(Accelerator(cpu=True)):
        STOP.poll()
        now += 2
        with pytest.raises(Stopped):
            STOP.poll()


def test_two_runs_in_one_folder_are_refused(teachers: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with FileLock(run / ".lock"):
        (run / ".lock").write_text("process 7 on elsewhere\n")
        with pytest.raises(UserError) as caught:
            fit_run(recipe(teachers / "edm"), run)
    assert str(caught.value) == (f"'{run}' is in use by process 7 on elsewhere; end that run, or take another folder")
    assert [path.name for path in run.iterdir()] == [".lock"]
    fit_run(recipe(teachers / "edm", images=8), run)  # it is free again, and after this
    fit_run(recipe(teachers / "edm", images=16), run, resume=True)


PROGRAM = """
from trainers.engine.stopping import STOP
polls, poll = 0, STOP.poll
def counted():
    global polls
    polls += 1
    if polls == 4:
        import os, signal
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGUSR1)
    poll()
STOP.poll = counted
from launch.main import main
main()
"""


def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_update(teachers: Path, tmp_path: Path) -> None:
    """The second is told before its fourth update, and both leave one later, saved; then both go on to the end."""
    run = tmp_path / "run"
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(teachers / "edm", checkpoint_every=1000, health={"every": 0})))
    job = launch(["-c", PROGRAM, "train", str(file), "--folder", str(run)], tmp_path / "out.txt", 2)
    assert job.finish() == 75, job.text
    assert [process.returncode for process in job.processes] == [75, 75]
    assert "distill: stopped by SIGUSR1 at 32 images, which are saved" in job.text and "Traceback" not in job.text
    assert job.text.count("stopped by") == 1
    found = checkpoint.newest(run / "checkpoints")[0]
    assert int(found.name) == 32
    assert len(list(found.glob("generator-*-of-00002.safetensors"))) == 2
    assert torch.tensor([file.stat().st_size for file in found.glob("*-of-00002.safetensors")]).min() > 0


def test_a_run_saves_after_each_tenth_by_default(teachers: Path, tmp_path: Path) -> None:
    """60,000 images once lost all of a run that was killed at 20,000."""
    settings = recipe(teachers / "edm", images=160, checkpoint_every=None, keep=99)
    assert build_experiment({k: v for k, v in settings.items() if k != "checkpoint_every"}, "").checkpoint_every is None
    fit_run(settings, tmp_path)
    assert sorted(int(folder.name) for folder in checkpoint.folders(tmp_path / "checkpoints")) == [*range(0, 161, 16)]


def test_a_run_saves_by_the_clock_and_to_the_same_bits(teachers: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Only where the recipe does not say how often; the time of a save changes no weight."""
    settings = recipe(teachers / "edm", images=64, keep=99)
    monkeypatch.setattr(loop, "SECONDS", 0.0)
    monkeypatch.setattr(loop, "PARTS", 2)
    fit_run(settings, tmp_path / "explicit")
    fit_run({**settings, "checkpoint_every": None}, tmp_path / "clock")
    explicit, clock = (
        sorted(int(folder.name) for folder in checkpoint.folders(tmp_path / run / "checkpoints"))
        for run in ("explicit", "clock")
    )
    assert (explicit, clock) == ([0, 24, 48, 64], [*range(0, 65, 8)])
    for images in (24, 48, 64):
        for stem in ("generator", "fake", "ema", "generator.optimizer", "meter"):
            name = f"checkpoints/{images:012d}/{stem}.safetensors"
            assert (tmp_path / "explicit" / name).read_bytes() == (tmp_path / "clock" / name).read_bytes()


CLOCK = """
import os, time
from trainers import loop
loop.PARTS, loop.SECONDS = 1, 0.0 if os.environ["RANK"] == "1" else 1e9
from launch.main import main
main()
"""


def test_two_processes_agree_on_the_clock(teachers: Path, tmp_path: Path) -> None:
    """The clock of the second alone asks for saves; both save after the same updates."""
    file = tmp_path / "recipe.yaml"
    settings = recipe(teachers / "edm", images=48, checkpoint_every=None, keep=99, health={"every": 0})
    file.write_text(yaml.safe_dump(settings))
    job = launch(["-c", CLOCK, "train", str(file), "--folder", str(tmp_path / "run")], tmp_path / "out.txt", 2)
    assert job.finish() == 0, job.text
    found = checkpoint.folders(tmp_path / "run/checkpoints")
    assert [int(folder.name) for folder in found] == [48, 40, 32, 24, 16, 0]  # the first agreement takes two polls
    assert all(checkpoint.flaw(folder) is None for folder in found)
