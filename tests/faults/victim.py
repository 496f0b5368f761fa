"""Processes that die on time: forked from one that has imported everything, so that hundreds of them are cheap."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import launch.main
import launch.processes
from launch import keeper
from tests.tiny import tiny_denoiser
from trainers.engine.stopping import SIGNALS, STOP

WARM = ("diffusers", "sklearn.datasets", "matplotlib.pyplot", "PIL.PngImagePlugin", "accelerate", "safetensors.torch")
PR_SET_CHILD_SUBREAPER = 36  # of prctl(2)
GONE_SECONDS = 10.0  # that a job may take to end after a kill, on a machine that is busy


def warm() -> None:
    """Import what a run imports late, before anything forks; nothing here starts a thread."""
    torch.set_num_threads(1)
    for module in WARM:
        importlib.import_module(module)
    tiny_denoiser()


@dataclass(frozen=True)
class Trap:
    """kill -9 of the process itself around the `call`-th call of `place` (module:attribute): `before` it, or `delay`
    seconds after it began, wherever the process is then. With `up` it is the ancestor of as many generations."""

    place: str
    call: int
    delay: float | None = None
    up: int = 0

    def set(self) -> None:
        """Put it in place, in the process that is to die."""
        module, _, path = self.place.partition(":")
        *outer, name = path.split(".")
        owner: Any = reduce(getattr, outer, importlib.import_module(module))
        function, calls, victim = getattr(owner, name), 0, os.getpid()
        for _ in range(self.up):
            victim = keeper.parent(victim) or victim

        def trapped(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == self.call and self.delay is None:
                die(victim)
            if calls == self.call:
                threading.Timer(self.delay or 0.0, die, [victim]).start()
            return function(*arguments, **options)

        setattr(owner, name, trapped)


def die(victim: int) -> None:
    """kill -9 of a process."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)


def adopt_orphans() -> None:
    """Make this process the parent of all processes whose parent dies, so that `seconds_until_gone` sees them."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def offspring() -> set[int]:
    """The processes that descend from this one and have not ended."""
    states, parents = dict[int, bytes](), dict[int, int]()
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, parent = file.read_bytes().rpartition(b")")[2].split()[:2]
            states[int(file.parent.name)], parents[int(file.parent.name)] = state, int(parent)
    found, generation = set[int](), {os.getpid()}
    while generation := {process for process, parent in parents.items() if parent in generation}:
        found |= generation
    return {process for process in found if states[process] not in (b"Z", b"X")}


def seconds_until_gone() -> float:
    """Wait until no descendant of this process is left, which `adopt_orphans` came before."""
    began = time.monotonic()
    while left := offspring():
        if time.monotonic() > began + GONE_SECONDS:
            shown = [Path(f"/proc/{one}/cmdline").read_bytes().replace(b"\0", b" ")[:200] for one in left]
            for one in left:
                die(one)
            raise AssertionError(f"after {GONE_SECONDS} s there are still {shown}")
        time.sleep(0.01)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, os.WNOHANG)
    return time.monotonic() - began


@dataclass
class Victims:
    """The forked processes of one command."""

    pids: list[int]
    output: Path

    def wait(self, timeout: float = 300) -> list[int]:
        """Exit codes, a signal's negative; when the first is killed all are."""
        codes: dict[int, int] = {}
        end = time.monotonic() + timeout
        while len(codes) < len(self.pids):
            for pid in self.pids:
                if pid not in codes and (found := os.waitpid(pid, os.WNOHANG))[0]:
                    codes[pid] = os.waitstatus_to_exitcode(found[1])
            if time.monotonic() > end or any(code < 0 for code in codes.values()):
                for pid in set(self.pids) - set(codes):
                    os.kill(pid, signal.SIGKILL)
                    codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                if time.monotonic() > end:
                    raise AssertionError(f"no end after {timeout} s:\n{self.output.read_text()}")
            time.sleep(0.002)
        return [codes[pid] for pid in self.pids]


def distill(
    arguments: Sequence[str], output: Path, world: int = 1, traps: Sequence[Trap] = (), first: Callable[[], None] = str
) -> Victims:
    """`distill ARGUMENTS` in `world` forked processes, after `first` in each; the last one falls into the traps."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    pids = []
    for rank in range(world):
        if (pid := os.fork()) == 0:
            code = 1
            with contextlib.suppress(BaseException):
                code = _child(arguments, output, rank, world, port, traps if rank == world - 1 else (), first)
            os._exit(code)
        pids.append(pid)
    return Victims(pids, output)


class Worker:
    """A worker that a launcher forks in place of the one that it would start: `warm` has imported everything.

    It has what `launch.processes` asks of a subprocess.Popen. The worker of the last rank falls into the traps.
    """

    def __init__(self, command: list[str], env: dict[str, str], output: Path, traps: Sequence[Trap]) -> None:
        self.returncode: int | None = None

        def fresh() -> None:
            launch.processes.subprocess = subprocess
            STOP.__init__()  # type: ignore[misc]  # the launcher's has handlers, and is listening
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            os.environ.clear()
            os.environ.update(env)
            subprocess.Popen(["sleep", "300"])  # as a process that loads data

        rank, world = int(env["RANK"]), int(env["WORLD_SIZE"])
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                arguments = command[command.index("launch.main") + 1 :]
                code = _child(arguments, output, rank, 1, "", traps if rank == world - 1 else (), fresh)
            os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None and (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(found[1])
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def launcher(arguments: Sequence[str], output: Path, world: int, trap: Trap | None = None) -> Victims:
    """`distill ARGUMENTS --processes WORLD`, with forked workers, which are no victims of their own.

    A trap in `launch.processes` is the launcher's own. Into any other one its last worker falls, and the launcher dies.
    """
    own = [trap] if trap is not None and trap.place.startswith("launch.processes:") else []
    of_worker = [] if trap is None or own else [replace(trap, up=1)]

    def fork_workers() -> None:
        def start(command: list[str], env: dict[str, str], start_new_session: bool) -> Worker:
            return Worker(command, env, output, of_worker)

        launch.processes.subprocess = SimpleNamespace(Popen=start)  # type: ignore[assignment]

    return distill([*arguments, "--processes", str(world), "--oversubscribe"], output, 1, own, fork_workers)


def _child(
    arguments: Sequence[str],
    output: Path,
    rank: int,
    world: int,
    port: str,
    traps: Sequence[Trap],
    first: Callable[[], None],
) -> int:
    stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(stream, standard)
    # The streams that they replace may be of a launcher, and must not close what is theirs now.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
    os.setsid()
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        os.environ |= {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
    sys.argv = ["distill", *arguments]
    try:
        first()
        for trap in traps:
            trap.set()
        launch.main.main()
    except SystemExit as exit:
        return int(exit.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
