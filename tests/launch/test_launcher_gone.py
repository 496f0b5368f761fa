"""Nobody is left when a launcher, or a worker, is killed: in every phase, and with what the workers have started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch.keeper import members
from tests.tiny import ROOT

# A launcher, with a torch that takes no time.
LAUNCHER = """
import sys
from types import SimpleNamespace
sys.modules["torch"] = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False))
from launch.processes import start_workers
start_workers(2, ["train", "digits_sid"])
"""
# The start of each worker: `deaf` runs after what its tests need, as code that a library runs while it is imported.
WORKER = """
import os, signal, subprocess, sys, time
FOLDER = {folder!r}

def note(name, pid):
    with open(os.path.join(FOLDER, name), "a") as stream:
        print(pid, file=stream)

def child(ignored=()):
    program = f"import signal, time\\nfor n in {{list(map(int, ignored))}}: signal.signal(n, signal.SIG_IGN)\\n"
    program += "print(flush=True)\\ntime.sleep(300)"
    started = subprocess.Popen([sys.executable, "-I", "-S", "-c", program], stdout=subprocess.PIPE)
    started.stdout.readline()
    note("child", started.pid)

def deaf():
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            time.sleep(1)
        except Exception:  # as an optional import does
            pass
"""
IMPORTING = WORKER + "note('worker', os.getpid())\nchild()\nchild([signal.SIGTERM])\ndeaf()\n"
STUCK = WORKER + (
    "note('worker', os.getpid())\nchild()\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\ndeaf()\n"
)
TRAINING = """
import sys
sys.path.insert(0, {folder!r})
import os, time
from types import SimpleNamespace
from launch.processes import follow_launcher
from trainers.engine.stopping import STOP, Stopped
from worker import child, note
with STOP.listening():
    follow_launcher()
    try:
        with STOP.deferred(SimpleNamespace(num_processes=1)):
            child()
            note("worker", os.getpid())
            while True:
                time.sleep(0.01)
                STOP.poll()
    except Stopped:
        note("saved", os.getpid())
        os._exit(75)
"""


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def noted(folder: Path, name: str) -> list[int]:
    file = folder / name
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


def anyone(folder: Path) -> set[int]:
    """Workers, their keepers and children that live."""
    workers, children = noted(folder, "worker"), noted(folder, "child")
    return set().union(*map(members, workers)) | set(filter(alive, [*workers, *children]))


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a launcher whose workers run some code when they import torch, or when Python starts them."""

    def start(code: str, when: str = "torch") -> subprocess.Popen[bytes]:
        text = code.format(folder=str(tmp_path))
        if when == "torch":
            (tmp_path / "torch").mkdir()
            (tmp_path / "torch/__init__.py").write_text(text)
        else:
            (tmp_path / "sitecustomize.py").write_text(text)
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
        return subprocess.Popen([sys.executable, "-c", LAUNCHER], env=environment, cwd=ROOT)

    yield start
    for process in anyone(tmp_path):
        os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize("code", [IMPORTING, STUCK], ids=["importing", "stuck in a library"])
def test_a_killed_launcher_leaves_nobody(
    code: str, launched: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """Neither workers that import, though the import swallows what a signal raises, nor what they have started."""
    launcher = launched(code)
    count = 4 if code == IMPORTING else 2
    assert wait_for(lambda: len(noted(tmp_path, "child")) == count) and len(noted(tmp_path, "worker")) == 2
    for worker in noted(tmp_path, "worker"):
        assert len(members(worker)) == 2 + count // 2  # the worker, its keeper and its children
    launcher.kill()
    launcher.wait()
    assert wait_for(lambda: not anyone(tmp_path), 10), anyone(tmp_path)


def test_a_launcher_that_is_killed_at_once_leaves_nobody(
    launched: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """Its workers are not yet in our code then."""
    code = WORKER + "if 'RANK' in os.environ:\n    note('worker', os.getpid())\n    time.sleep(1)\n"
    launcher = launched(code, "start")
    assert wait_for(lambda: len(noted(tmp_path, "worker")) == 2)
    launcher.kill()
    launcher.wait()
    assert len(anyone(tmp_path)) == 2
    assert wait_for(lambda: not anyone(tmp_path), 10), anyone(tmp_path)


def test_a_killed_worker_leaves_nobody(launched: Callable[..., subprocess.Popen[bytes]], tmp_path: Path) -> None:
    """By the time that the launcher ends."""
    launcher = launched(IMPORTING)
    assert wait_for(lambda: len(noted(tmp_path, "child")) == 4)
    os.kill(noted(tmp_path, "worker")[1], signal.SIGKILL)
    assert launcher.wait(20) == 128 + 9
    assert not anyone(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_a_worker_that_trains_saves_first(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER.format(folder=str(tmp_path)))
    program = f"""
import os, signal, subprocess, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored
environment = {{**os.environ, "DISTILL_LAUNCHER": str(os.getpid())}}
program = {TRAINING.format(folder=str(tmp_path))!r}
subprocess.Popen([sys.executable, "-c", program], env=environment, start_new_session=True)
time.sleep(300)
"""
    launcher = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    try:
        assert wait_for(lambda: bool(noted(tmp_path, "worker")))
        (worker,) = noted(tmp_path, "worker")
        assert len(members(worker)) == 3
        launcher.send_signal(number)
        assert wait_for(lambda: not anyone(tmp_path), 10), anyone(tmp_path)
        assert noted(tmp_path, "saved") == [worker]
    finally:
        launcher.kill()
        launcher.wait()
        for process in anyone(tmp_path):
            os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize("orphan", [False, True])
def test_a_worker_that_hangs_is_killed_in_the_end(orphan: bool, tmp_path: Path) -> None:
    """Its keeper does it, where neither the launcher nor Linux does."""
    program = f"""
import os, subprocess, sys, time
sys.path.insert(0, {str(ROOT)!r})
from launch import keeper
keeper.ORPHAN_SECONDS = 1.0
if os.fork() == 0:
    os.setsid()
    worker, launcher = os.getpid(), os.getppid()
    if os.fork() == 0:
        keeper.keep(worker, launcher)
    print(worker, file=open({str(tmp_path / "worker")!r}, "a"), flush=True)
    time.sleep(300)
time.sleep(0.5 if {orphan} else 300)
"""
    launcher = subprocess.Popen([sys.executable, "-c", program])
    try:
        assert wait_for(lambda: bool(noted(tmp_path, "worker")))
        time.sleep(2.5)
        assert bool(anyone(tmp_path)) != orphan
    finally:
        launcher.kill()
        launcher.wait()
    assert wait_for(lambda: not anyone(tmp_path), 10)


@pytest.mark.parametrize("lines", [0, 2])
def test_output_that_nobody_reads_ends_nothing(lines: int) -> None:
    """The reader of the output was the program that was killed. A run prints on, is told to stop, saves and exits."""
    program = f"""
import sys
from launch.main import print_error
from launch.processes import exit_now
from trainers.io.console import plain
console = plain(stderr=True)
console.print("ready")
sys.stdin.read()
for number in range({lines}):
    console.print(number)
print_error("stopped")
exit_now(75)
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stderr=pipe, cwd=ROOT) as started:
        assert started.stdin is not None and started.stderr is not None
        assert started.stderr.readline() == b"ready\n"
        started.stderr.close()
        started.stdin.close()
        assert started.wait(60) == 75
