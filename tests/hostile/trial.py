"""One hostile input: it is prepared in one forked process and given to the `distill` command in another.

The processes are forked from one that has imported everything, so that thousands of them are cheap. The command gets a
session, a home, a working directory and a folder for temporary files of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import launch.main

MEMORY, SECONDS = 2 * 2**30, 60.0  # the most bytes and seconds that an input may take
MARK = "DISTILL_HOSTILE"  # the environment variable by which processes that are left are found
LINE = 2000  # the most characters of the line of a refusal
WARM = (
    *("accelerate", "datasets", "diffusers", "matplotlib.pyplot", "peft", "pyarrow.parquet", "safetensors.torch"),
    *("sklearn.datasets", "torchvision", "transformers", "trainers.api", "trainers.plan.trace"),
    *("trainers.runs.classifier", "trainers.runs.import_teacher", "trainers.runs.make_pairs", "trainers.runs.posthoc"),
)


def warm() -> None:
    """Import what commands import late, before anything forks."""
    for module in WARM:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DModel
    from PIL import Image
    from transformers import CLIPTextModel, CLIPTokenizer

    Image.init()
    assert AutoencoderKL and PNDMScheduler and StableDiffusionPipeline and UNet2DModel
    assert CLIPTextModel and CLIPTokenizer


@dataclass(frozen=True)
class Place:
    """The folders of one input.

    Attributes:
        root: The folder that holds all others.
        valid: The valid files (tests.hostile.valid), which nothing may change.
    """

    root: Path
    valid: Path

    @property
    def given(self) -> Path:
        """The folder of the hostile input."""
        return self.root / "in"

    @property
    def out(self) -> Path:
        """The folder that the command may fill."""
        return self.root / "out"

    @property
    def cwd(self) -> Path:
        """The working directory of the command."""
        return self.root / "cwd"

    @property
    def home(self) -> Path:
        """The home of the command."""
        return self.root / "home"

    @property
    def tmp(self) -> Path:
        """The folder of temporary files, of which none may be left."""
        return self.root / "tmp"

    @property
    def guard(self) -> Path:
        """A folder outside, to which hostile inputs lead."""
        return self.root / "guard"

    @property
    def canary(self) -> Path:
        """The file that every hostile code writes."""
        return self.guard / "canary"

    def take(self, name: str) -> Path:
        """Copy one of the valid files or folders to the input, and return the copy."""
        source, target = self.valid / name, self.given / name
        if source.is_dir():
            return Path(shutil.copytree(source, target))
        return Path(shutil.copy2(source, target))


@dataclass(frozen=True)
class Call:
    """A call of the command.

    Attributes:
        arguments: The arguments of `distill`.
        writes: The folders below the root of the place in which it may write, beside `out` and `cwd/runs`.
        what: The input in words.
        environment: Variables that the command has beside its own.
    """

    arguments: list[str]
    writes: list[str]
    what: str
    environment: dict[str, str] = field(default_factory=dict)


Reader = Callable[[random.Random, Place], Call]
"""Prepares an input from a seed."""


@dataclass
class Outcome:
    """The end of a call: `accepted` with what the user asked for, or refused. `faults` are the broken promises."""

    accepted: bool = False
    faults: dict[str, str] = field(default_factory=dict)
    memory: int = 0
    seconds: float = 0.0


class Trial:
    """An input and the command that reads it, at work."""

    def __init__(self, name: str, reader: Reader, seed: str, place: Place) -> None:
        """Prepare the input and start the command.

        Args:
            name: The name of the input, unique in a call of the suite.
            reader: Prepares the input.
            seed: The seed of the input.
            place: Its folders, which are made.
        """
        self.name, self.place = name, place
        for folder in (place.given, place.out, place.cwd, place.home, place.tmp, place.guard):
            folder.mkdir(parents=True)
        os.waitpid(fork(partial(_prepare, reader, seed, place), place.root / "prepared.txt"), 0)
        try:
            self.call = Call(**json.loads((place.root / "call.json").read_text()))
        except OSError:
            raise AssertionError(f"{name}: not prepared:\n{(place.root / 'prepared.txt').read_text()}") from None
        for made in ("prepared.txt", "stdout.txt", "stderr.txt"):
            (place.root / made).touch()
        self.before = listing(place)
        self.started, self.peak = time.monotonic(), 0
        self.pid = fork(partial(_command, self.call, place), place.root / "stdout.txt", place.root / "stderr.txt")

    def poll(self) -> Outcome | None:
        """Return the outcome, or None while the command is at work."""
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        seconds = time.monotonic() - self.started
        if pid == 0:
            self.peak = max(self.peak, resident(self.pid))
            if seconds < SECONDS and self.peak < 2 * MEMORY:  # beyond twice the bar the machine itself is in danger
                return None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            _, status, usage = os.wait4(self.pid, 0)
        return self._judge(os.waitstatus_to_exitcode(status), usage, seconds)

    def _judge(self, code: int, usage: resource.struct_rusage, seconds: float) -> Outcome:
        """Return what came of the input."""
        found = Outcome(memory=max(self.peak, usage.ru_maxrss * 1024), seconds=seconds)
        out, err = ((self.place.root / f"std{one}.txt").read_text(errors="replace") for one in ("out", "err"))
        if left := self._left():
            found.faults["left"] = f"{len(left)} processes: {', '.join(left.values())[:300]}"
            end(left)
        if seconds >= SECONDS:
            found.faults["time"] = f"more than {SECONDS:.0f} s"
        elif found.memory < 2 * MEMORY and code < 0:
            found.faults["crash"] = signal.Signals(-code).name
        if found.memory > MEMORY:
            found.faults["memory"] = f"{found.memory / 2**20:,.0f} MB"
        if "Traceback (most recent call last)" in out + err:
            found.faults["traceback"] = err.strip().rpartition("\n")[2][:300]
        elif not found.faults and (wrong := wrong_end(code, self.call.arguments, err)):
            found.faults["end"] = wrong
        if self.place.canary.exists():
            found.faults["code"] = self.place.canary.read_text(errors="replace")[:100] or "the canary was touched"
        if changed := self._changed():
            found.faults["outside"] = ", ".join(changed)[:300]
        found.accepted = code in (0, 75)
        return found

    def _left(self, patience: float = 2.0) -> dict[int, str]:
        """Return the processes of the command that have not ended, after some patience."""
        until = time.monotonic() + patience
        while (left := members(self.pid, f"{MARK}={self.place.root}")) and time.monotonic() < until:
            time.sleep(0.02)
        return left

    def _changed(self) -> list[str]:
        """Return the files outside the folders of the command that are new, other or gone."""
        now, allowed = listing(self.place), ("out", "cwd/runs", *self.call.writes)
        changed = sorted(
            name for name in {*now, *self.before} if now.get(name) != self.before.get(name) and name != "guard/canary"
        )
        return [name for name in changed if not any(f"{name}/".startswith(f"{one}/") for one in allowed)]


def wrong_end(code: int, arguments: list[str], err: str) -> str | None:
    """Return what is wrong with the way in which a command ended, or None."""
    lines = [line for line in err.splitlines() if line.startswith("distill: ")]
    if code == 0 or (code == 75 and "--time-limit" in arguments):
        return None
    if code not in (1, 2):
        return f"exit code {code}"
    if (code == 1 and arguments[0] == "plan" and not lines) or (code == 2 and "Usage: " in err and not lines):
        return None  # a plan that does not fit; an option that there is not
    if len(lines) != 1:
        return f"exit code {code} with {len(lines)} lines: {err.strip()[-200:]}"
    return f"a line of {len(lines[0]):,} characters" if len(lines[0]) > LINE else None


def fork(work: Callable[[], object], out: Path, err: Path | None = None) -> int:
    """Do some work in a forked process, the leader of a new session, and return its id."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, file in ((1, out), (2, err or out)):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1, errors="backslashreplace")  # as Python's
        work()
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(bool(exit.code))
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()  # Python's own end would remove temporary folders
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _prepare(reader: Reader, seed: str, place: Place) -> None:
    os.chdir(place.given)
    call = reader(random.Random(seed), place)
    (place.root / "call.json").write_text(json.dumps(vars(call)))


def _command(call: Call, place: Place) -> None:
    os.chdir(place.cwd)
    for name in [name for name in os.environ if name.startswith(("XDG_", "DISTILL_"))]:
        del os.environ[name]
    os.environ |= {"HOME": str(place.home), "TMPDIR": str(place.tmp), "DISTILL_CACHE": str(place.out / "cache")}
    os.environ |= {MARK: str(place.root), "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1", **call.environment}
    tempfile.tempdir = None
    sys.argv = ["distill", *call.arguments]
    launch.main.main()


def listing(place: Place) -> dict[str, tuple[int, int, int]]:
    """Return mode, size and time of all that lies in a place and in the valid files."""
    return dict(_entries(place.root, "")) | dict(_entries(place.valid, "valid/"))


def _entries(folder: Path, prefix: str) -> Iterator[tuple[str, tuple[int, int, int]]]:
    for entry in os.scandir(folder):
        found = entry.stat(follow_symlinks=False)
        name = f"{prefix}{entry.name}"
        if name in ("stdout.txt", "stderr.txt"):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield name, (found.st_mode, 0, 0)
            yield from _entries(Path(entry.path), f"{name}/")
        else:
            yield name, (found.st_mode, found.st_size, found.st_mtime_ns)


def resident(pid: int) -> int:
    """Return the bytes of memory that a process has now."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def members(session: int, mark: str) -> dict[int, str]:
    """Return the processes, by id and command, that are in a session or carry a mark in their environment."""
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, _, _, its_session = (folder / "stat").read_bytes().rpartition(b")")[2].split()[:4]
            marked = int(its_session) == session or mark.encode() in (folder / "environ").read_bytes().split(b"\0")
            if marked and state not in (b"Z", b"X"):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[int(folder.name)] = re.sub(r"\s+", " ", command)[:100]
    return found


def end(processes: dict[int, Any]) -> None:
    """Kill processes."""
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
