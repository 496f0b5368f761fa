"""The processes of a run: how they are started, watched, and joined."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from distill.errors import UserError
from trainers.engine.stopping import EXIT_INTERRUPTED, SIGNALS, STOP

if TYPE_CHECKING:
    from accelerate import Accelerator

    from trainers.recipe.run import Experiment

EXIT_USER_ERROR, EXIT_STOPPED = 2, 75  # 75 is EX_TEMPFAIL of sysexits.h: try again
GRACE_SECONDS = 60.0  # that workers have to exit after the first of them
PR_SET_PDEATHSIG = 1  # of prctl(2): the signal that a process gets when its parent ends
LAUNCHER = "DISTILL_LAUNCHER"  # the environment variable with the id of the process that started the workers


def in_world() -> bool:
    """Return whether a launcher (ours, accelerate launch, torchrun) started this process as one of several."""
    return "WORLD_SIZE" in os.environ


def world_size() -> int:
    """Return the number of processes that a launcher started, or 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def starts_workers(processes: int) -> bool:
    """Return whether this process starts `processes` workers, which train in its place."""
    return processes > 1 and not in_world()


def start_workers(processes: int, arguments: list[str]) -> NoReturn:
    """Run `distill ARGUMENTS` in several workers on this machine, and exit when they have exited.

    Signals are passed on to the workers. The exit code is that of the worker that failed first.

    Args:
        processes: The number of workers, with one GPU each if there are GPUs.
        arguments: The command and its arguments.

    Raises:
        UserError: There are fewer GPUs than processes.
    """
    import torch

    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), LAUNCHER: str(os.getpid())}
    common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    common.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))  # the cores, divided
    if not torch.cuda.is_available():
        common["ACCELERATE_USE_CPU"] = "true"
        common.setdefault("GLOO_SOCKET_IFNAME", "lo")
    elif processes > torch.cuda.device_count():
        raise UserError(f"--processes: {processes} asked for, this machine has {torch.cuda.device_count()} GPUs")
    debug = ["--debug"] if "--debug" in sys.argv else []
    command = [sys.executable, "-m", "launch.main", *arguments, *debug]
    # The handler notes a signal alone. `watch` sends it on, when all workers have started.
    received: list[int] = []
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: received.append(number))
    workers = []
    # Each worker has a session of its own. Otherwise Ctrl-C, which the terminal sends to the whole session, would reach
    # it twice, and the second SIGINT ends a worker without saving.
    for rank in map(str, range(processes)):
        environment = {**common, "RANK": rank, "LOCAL_RANK": rank}
        workers.append(subprocess.Popen(command, env=environment, start_new_session=True))
    exit_now(watch(workers, received))


def exit_now(code: int) -> NoReturn:
    """Exit at once. Python's own exit takes seconds to unload the imported packages."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _free_port() -> int:
    """Return a port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def watch(workers: Sequence[subprocess.Popen[bytes]], received: list[int]) -> int:
    """Wait until all workers have exited, and return the exit code of the one that failed first.

    If a worker crashes, the others are killed at once, since they would wait for it forever. If it exits by itself, by
    an error of the user or by a stop, the others get GRACE_SECONDS to exit too.

    Args:
        workers: The workers, by rank.
        received: The signals that this process has received. They are taken out and sent to all workers.
    """
    first, end = 0, float("inf")
    while any(worker.poll() is None for worker in workers):
        while received:
            number = received.pop(0)
            for worker in workers:
                worker.send_signal(number)
        failed = next((worker for worker in workers if worker.poll()), None)
        if failed is not None and not first:
            first = failed.returncode
            by_itself = first in (EXIT_USER_ERROR, EXIT_STOPPED, EXIT_INTERRUPTED)
            end = time.monotonic() + (GRACE_SECONDS if by_itself else 0)
            if first < 0:
                why = f"process {workers.index(failed)} of {len(workers)} was killed by {signal.Signals(-first).name}"
                print(f"distill: {why}; the others are ended, `distill resume` goes on", file=sys.stderr)
        if time.monotonic() > end:
            for worker in workers:
                worker.kill()
        time.sleep(0.05)
    first = first or next((worker.returncode for worker in workers if worker.returncode), 0)
    return first if first >= 0 else 128 - first  # as a shell reports a process that a signal ended


def follow_launcher() -> None:
    """Have Linux send this process SIGTERM when its launcher (ours, torchrun) is gone, even by SIGKILL."""
    ours = os.environ.get(LAUNCHER)
    STOP.launcher = int(ours) if ours else None
    if sys.platform == "linux" and (ours or "TORCHELASTIC_RUN_ID" in os.environ):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if ours and os.getppid() != int(ours):  # the launcher was gone before prctl, which then sends nothing
            os.kill(os.getpid(), signal.SIGTERM)


def join_world(processes: int | None, run: Experiment, folder: Path) -> Accelerator:
    """Return the Accelerator of this process. Collective.

    Args:
        processes: The number of processes that the user has asked for. None for any.
        run: The recipe.
        folder: The run folder.

    Raises:
        UserError: A launcher started another number of processes, or they cannot be joined.
    """
    from trainers.engine.world import start_accelerator

    world = world_size()
    if processes not in (None, world):  # checked first: joining would wait for processes that never come
        raise UserError(f"--processes: {processes} asked for, but the launcher started {world}; leave it out there")
    try:
        accelerator = start_accelerator(run, folder)
    except ValueError as error:  # the environment has some of a launcher's variables, and not all
        raise UserError(f"WORLD_SIZE: {world} processes announced, but they cannot be joined: {error}") from error
    if accelerator.num_processes != world:
        raise UserError(
            f"WORLD_SIZE: {world} processes announced, but Accelerate sees {accelerator.num_processes};"
            " start through `distill ... --processes N`, or see docs/multi_gpu.md for other launchers"
        )
    return accelerator
