"""The launcher and its processes end together, with an exit code that says why."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch import processes
from launch.processes import start_workers, watch_workers
from tests.tiny import distill, launch, recipe
from trainers.checkpoints import checkpoint

PATIENT = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\nprint(flush=True)\n"


def started(*programs: str) -> list[subprocess.Popen[bytes]]:
    """Python processes, each of which has printed a line."""
    workers = [subprocess.Popen([sys.executable, "-c", one], stdout=subprocess.PIPE) for one in programs]
    for worker in workers:
        assert worker.stdout is not None
        worker.stdout.readline()
    return workers


@pytest.mark.parametrize(("code", "expected"), [("0", 0), ("75", 75), ("2", 2), ("1", 1), ("3", 3)])
def test_the_exit_code_is_that_of_the_first_to_fail(
    code: str, expected: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The others get GRACE_SECONDS where it left by itself, and none where it crashed."""
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.5)
    other = PATIENT + ("time.sleep(0.2)" if code == "0" else "time.sleep(60)")
    workers = started(other, f"print(flush=True)\nimport sys\nsys.exit({code})")
    begin = time.monotonic()
    assert watch_workers(workers, []) == expected
    assert time.monotonic() - begin < 5
    assert workers[0].returncode == (0 if code == "0" else -9)
    assert capfd.readouterr().err == ""


def test_one_that_is_killed_ends_all_and_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    workers = started(PATIENT + "time.sleep(60)", PATIENT + "time.sleep(60)")
    threading.Timer(0.2, workers[1].kill).start()
    begin = time.monotonic()
    assert watch_workers(workers, []) == 128 + 9
    assert time.monotonic() - begin < 5 and workers[0].returncode == -9
    assert capfd.readouterr().err == (
        "distill: process 1 of 2 was killed by SIGKILL; the others are ended, `distill resume` goes on\n"
    )


def test_signals_are_sent_on() -> None:
    workers, told = started(PATIENT + "time.sleep(60)", PATIENT + "time.sleep(60)"), list[int]()
    threading.Timer(0.2, lambda: told.append(signal.SIGTERM)).start()
    assert watch_workers(workers, told) == 75
    assert [worker.returncode for worker in workers] == [75, 75]


def test_what_the_processes_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[list[str], dict[str, str]]] = []

    def popen(command: list[str], env: dict[str, str], **options: Any) -> None:
        assert options == {"start_new_session": True}
        given.append((command, env))

    monkeypatch.setattr(processes.subprocess, "Popen", popen)
    monkeypatch.setattr(processes, "watch_workers", lambda workers, told: 5)
    monkeypatch.setattr(processes.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(sys, "argv", ["distill", "train", "x", "--processes", "3", "--debug"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(processes.os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as exit:
        start_workers(3, ["train", "x"])
    assert exit.value.code == 5
    assert [env["RANK"] for _, env in given] == [env["LOCAL_RANK"] for _, env in given] == ["0", "1", "2"]
    for command, env in given:
        assert command == [sys.executable, "-P", "-m", "launch.main", "train", "x", "--debug"]
        assert env["WORLD_SIZE"] == env["LOCAL_WORLD_SIZE"] == "3" and env["MASTER_PORT"] == given[0][1]["MASTER_PORT"]
        assert env["ACCELERATE_USE_CPU"] == "true" and env["OMP_NUM_THREADS"] == "1"
        assert env["DISTILL_LAUNCHER"] == str(os.getpid())


def processes_of(folder: Path) -> list[int]:
    """Ids of the living processes whose command line names the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if str(folder) in process.read_bytes().decode(errors="replace"):
                found.append(int(process.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 75), (signal.SIGKILL, 9)])
def test_the_end_of_the_launcher_ends_its_processes(
    number: signal.Signals, code: int, teachers: Path, tmp_path: Path
) -> None:
    """The command alone is told, as a scheduler or `timeout` does it: no process trains on, and the state is saved,
    even where the command is killed."""
    file, run = tmp_path / "recipe.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(recipe(teachers / "edm", images=1_000_000, log_every=8, checkpoint_every=10**6)))
    job = distill(
        ["train", str(file), "--processes", "2", "--oversubscribe", "--folder", str(run)], tmp_path / "out.txt"
    )
    try:
        assert job.wait_for((run / "log.jsonl").is_file)
        assert len(processes_of(run)) == 3
        os.kill(job.processes[0].pid, number)
        assert abs(job.processes[0].wait(60)) == code, job.text
        end = time.monotonic() + 60
        while processes_of(run) and time.monotonic() < end:
            time.sleep(0.1)
        assert not processes_of(run)
        assert int(checkpoint.newest(run / "checkpoints")[0].name) > 0
    finally:
        for process in processes_of(run):
            os.kill(process, signal.SIGKILL)


@pytest.mark.slow
def test_a_second_interrupt_leaves_without_saving(teachers: Path, tmp_path: Path) -> None:
    file, run = tmp_path / "recipe.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(recipe(teachers / "edm", images=1_000_000, log_every=8, checkpoint_every=10**6)))
    job = distill(
        ["train", str(file), "--processes", "2", "--oversubscribe", "--folder", str(run)], tmp_path / "out.txt"
    )
    assert job.wait_for((run / "log.jsonl").is_file)
    while job.running():
        job.processes[0].send_signal(signal.SIGINT)
        time.sleep(0.01)
    assert job.processes[0].returncode == 130, job.text
    assert not processes_of(run)
    assert int(checkpoint.newest(run / "checkpoints")[0].name) == 0 and not (run / "stopped.json").exists()


def test_the_exit_codes_of_the_command(teachers: Path, tmp_path: Path) -> None:
    """75 at a signal anywhere, be it before anything trains, and whatever comes after it."""
    file, run = tmp_path / "recipe.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(recipe(teachers / "edm", images=1_000_000, log_every=8)))
    job = distill(["train", str(file), "--folder", str(run)], tmp_path / "out.txt")
    assert job.wait_for(lambda: (run / "log.jsonl").is_file())
    while job.running():
        job.processes[0].send_signal(signal.SIGUSR1)
        time.sleep(0.01)
    assert job.finish() == 75, job.text
    assert job.text.splitlines()[-1].startswith("distill: stopped by SIGUSR1 at ")
    program = "import launch.processes as p, os, signal, time\np.follow_launcher()\nprint(flush=True)\ntime.sleep(30)"
    orphan = launch(["-c", program], tmp_path / "orphan.txt", DISTILL_LAUNCHER="1")
    assert abs(orphan.finish()) == signal.SIGTERM


@pytest.mark.slow
def test_the_others_say_that_one_is_gone(teachers: Path, tmp_path: Path) -> None:
    """Under any launcher: kill -9 of the second ends the first soon, by one line."""
    file, run = tmp_path / "recipe.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(recipe(teachers / "edm", images=1_000_000, log_every=8)))
    job = distill(["train", str(file), "--folder", str(run)], tmp_path / "out.txt", 2)
    assert job.wait_for((run / "log.jsonl").is_file, 300)
    job.processes[1].kill()
    begin = time.monotonic()
    assert job.processes[0].wait(120) == 1, job.text
    assert time.monotonic() - begin < 5, job.text
    assert job.text.splitlines()[-1].startswith("distill: another process of the run is gone")
    assert "Traceback" not in job.text
