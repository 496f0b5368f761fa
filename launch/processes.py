"""The processes of a run: how they are started, watched, and joined."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from distill.errors import UserError
from launch import keeper
from launch.options import cache_folder
from trainers.engine.stopping import EXIT_INTERRUPTED, SIGNALS, STOP

if TYPE_CHECKING:
    from accelerate import Accelerator

    from trainers.recipe.run import Experiment

EXIT_USER_ERROR, EXIT_STOPPED = 2, 75  # 75 is EX_TEMPFAIL of sysexits.h: try again
GRACE_SECONDS = 60.0  # that workers have to exit after the first of them
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


def check_count(processes: int, oversubscribe: bool, resumed: Experiment | None = None) -> None:
    """Refuse to start more processes on this machine than it has GPUs, or cores if it has no GPU.

    Args:
        processes: The number of processes.
        oversubscribe: Whether processes may share cores. They never share a GPU, since NCCL takes one process a GPU.
        resumed: The recipe of a run whose checkpoint alone says how many processes to start.

    Raises:
        UserError: There are more processes than that.
    """
    from trainers.engine.world import devices

    present, what, gpus = devices()
    if processes <= present or (oversubscribe and not gpus):
        return
    more = "" if gpus else f"; --oversubscribe starts {processes} all the same"
    if resumed is None:
        raise UserError(f"--processes: {processes} asked for, this machine has {what}{more}")
    fewer = next((count for count in range(present, 1, -1) if _divides(resumed, count)), 1)
    raise UserError(
        f"--processes: the checkpoint was saved by {processes} processes, this machine has {what};"
        f" --processes {fewer} goes on with the same samples{more}"
    )


def _divides(run: Experiment, processes: int) -> bool:
    """Return whether the batch of a run can be divided over so many processes."""
    try:
        run.check_world(processes)
    except UserError:
        return False
    return True


def start_workers(processes: int, arguments: list[str]) -> NoReturn:
    """Run `distill ARGUMENTS` in several workers on this machine, and exit when they have exited.

    Signals are passed on to the workers. The exit code is that of the worker that failed first.

    Args:
        processes: The number of workers, with one GPU each if there are GPUs.
        arguments: The command and its arguments.
    """
    import torch

    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), LAUNCHER: str(os.getpid())}
    common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    common.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))  # the cores, divided
    if not torch.cuda.is_available():
        common["ACCELERATE_USE_CPU"] = "true"
        common.setdefault("GLOO_SOCKET_IFNAME", "lo")
    flags = [argument for argument in sys.argv if argument == "--debug" or argument.startswith("--trust-code")]
    command = [sys.executable, "-P", "-m", "launch.main", *arguments, *flags]  # -P: no module of the working directory
    # The handler notes a signal alone. `watch_workers` sends it on, when all workers have started.
    received: list[int] = []
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: received.append(number))
    workers = []
    # Each worker has a session of its own. Otherwise Ctrl-C, which the terminal sends to the whole session, would reach
    # it twice, and the second SIGINT ends a worker without saving.
    for rank in map(str, range(processes)):
        environment = {**common, "RANK": rank, "LOCAL_RANK": rank}
        workers.append(subprocess.Popen(command, env=environment, start_new_session=True))
    exit_now(watch_workers(workers, received))


def exit_now(code: int) -> NoReturn:
    """Exit at once. Python's own exit takes seconds to unload the imported packages."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):  # whoever read it is gone
            stream.flush()
    os._exit(code)


def _free_port() -> int:
    """Return a port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def watch_workers(workers: Sequence[subprocess.Popen[bytes]], received: list[int]) -> int:
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
    end = time.monotonic() + 2 * keeper.CHILDREN_SECONDS
    while any(keeper.members(worker.pid) for worker in workers) and time.monotonic() < end:
        time.sleep(0.01)  # the keepers end what the workers have started
    first = first or next((worker.returncode for worker in workers if worker.returncode), 0)
    return first if first >= 0 else 128 - first  # as a shell reports a process that a signal ended


def follow_launcher() -> None:
    """Make this process, and what it starts, end when its launcher (ours, torchrun) is gone, even by SIGKILL.

    Linux then kills the process, or sends SIGTERM once it trains, so that it can save (`Stop.deferred`).
    """
    ours = os.environ.pop(LAUNCHER, None)  # the programs that this process starts have another parent
    if ours is None and "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    STOP.follow_parent()
    if ours is None:
        return
    if os.getppid() != int(ours):  # the launcher was gone before, and Linux sends nothing
        os.kill(os.getpid(), signal.SIGTERM)
    if sys.platform == "linux" and os.getpgrp() == os.getpid():
        command = [sys.executable, "-I", "-S", keeper.__file__, str(os.getpid()), ours]
        null = subprocess.DEVNULL
        subprocess.Popen(command, stdin=null, stdout=null, stderr=null)


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
    cache = os.path.expanduser(cache_folder(run.cache))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(cache, "compiled"))
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
