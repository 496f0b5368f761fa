"""Processes that die on time: forked from one that has imported everything, so that hundreds of them are cheap."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch

import launch.main
from tests.tiny import tiny_denoiser

WARM = ("diffusers", "sklearn.datasets", "matplotlib.pyplot", "PIL.PngImagePlugin", "accelerate", "safetensors.torch")


def warm() -> None:
    """Import what a run imports late, before anything forks; nothing here starts a thread."""
    torch.set_num_threads(1)
    for module in WARM:
        importlib.import_module(module)
    tiny_denoiser()


@dataclass(frozen=True)
class Trap:
    """kill -9 of the process itself around the `call`-th call of `place` (module:attribute): `before` it, or `delay`
    seconds after it began, wherever the process is then."""

    place: str
    call: int
    delay: float | None = None

    def set(self) -> None:
        """Put it in place, in the process that is to die."""
        module, _, path = self.place.partition(":")
        *outer, name = path.split(".")
        owner: Any = reduce(getattr, outer, importlib.import_module(module))
        function, calls = getattr(owner, name), 0

        def trapped(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == self.call and self.delay is None:
                die()
            if calls == self.call:
                threading.Timer(self.delay or 0.0, die).start()
            return function(*arguments, **options)

        setattr(owner, name, trapped)


def die() -> None:
    """kill -9 of this process."""
    os.kill(os.getpid(), signal.SIGKILL)


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
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
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
