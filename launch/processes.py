"""Starting and joining the processes of a run."""

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

EXIT_USER_ERROR, EXIT_STOPPED = 2, 75  # 75: EX_TEMPFAIL of sysexits.h, try again
PATIENCE = 60.0  # seconds that processes have to leave after the first of them
PR_SET_PDEATHSIG = 1
LAUNCHER = "DISTILL_LAUNCHER"  # in the environment: the id of the process that started this one and others


def in_world() -> bool:
    """Whether a launcher (ours, accelerate launch, torchrun) started this process as one of several."""
    return "WORLD_SIZE" in os.environ


def world_size() -> int:
    """The number of processes that a launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launch_here(processes: int) -> bool:
    """Whether this process must start `processes` workers instead of training itself."""
    return processes > 1 and not in_world()


def relaunch(processes: int, arguments: list[str]) -> NoReturn:
    """Run `distill ARGUMENTS` in `processes` processes on this machine; ends this process as they end.

    What it is told by signals it tells them. It ends with the exit code of the one that failed first. Raises UserError
    when there are fewer GPUs than processes.
    """
    import torch

    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), LAUNCHER: str(os.getpid())}
    common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    common.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    if not torch.cuda.is_available():
        common["ACCELERATE_USE_CPU"] = "true"
        common.setdefault("GLOO_SOCKET_IFNAME", "lo")
    elif processes > torch.cuda.device_count():
        raise UserError(f"--processes: {processes} asked for, this machine has {torch.cuda.device_count()} GPUs")
    debug = ["--debug"] if "--debug" in sys.argv else []
    command = [sys.executable, "-m", "launch.main", *arguments, *debug]
    told: list[int] = []
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: told.append(number))
    workers = []
    for rank in map(str, range(processes)):  # sessions of their own: Ctrl-C reaches them once, through this process
        environment = {**common, "RANK": rank, "LOCAL_RANK": rank}
        workers.append(subprocess.Popen(command, env=environment, start_new_session=True))
    leave(watch(workers, told))


def leave(code: int) -> NoReturn:
    """End this process at once: to take down all that was imported takes seconds, and nothing is left to do."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def watch(workers: Sequence[subprocess.Popen[bytes]], told: list[int]) -> int:
    """Wait for all; the exit code of the one that failed first. What comes into `told` is sent on.

    One that ends by an error ends the others: at once where it crashed, since they can do nothing without it, within
    PATIENCE seconds where it left by itself and they do so too.
    """
    first, end = 0, float("inf")
    while any(worker.poll() is None for worker in workers):
        while told:
            number = told.pop(0)
            for worker in workers:
                worker.send_signal(number)
        failed = next((worker for worker in workers if worker.poll()), None)
        if failed is not None and not first:
            first = failed.returncode
            end = time.monotonic() + (PATIENCE if first in (EXIT_USER_ERROR, EXIT_STOPPED, EXIT_INTERRUPTED) else 0)
            if first < 0:
                why = f"process {workers.index(failed)} of {len(workers)} was killed by {signal.Signals(-first).name}"
                print(f"distill: {why}; the others are ended, `distill resume` goes on", file=sys.stderr)
        if time.monotonic() > end:
            for worker in workers:
                worker.kill()
        time.sleep(0.05)
    first = first or next((worker.returncode for worker in workers if worker.returncode), 0)
    return first if first >= 0 else 128 - first


def follow_launcher() -> None:
    """Let this process be told to stop when the launcher that started it, be it torchrun, is gone, even by kill -9
    (Linux)."""
    ours = os.environ.get(LAUNCHER)
    STOP.launcher = int(ours) if ours else None
    if sys.platform == "linux" and (ours or "TORCHELASTIC_RUN_ID" in os.environ):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if ours and os.getppid() != int(ours):  # it was gone already
            os.kill(os.getpid(), signal.SIGTERM)


def join_world(processes: int | None, run: Experiment, folder: Path) -> Accelerator:
    """Return this process's Accelerator; raises UserError when its world is not the one asked for."""
    from trainers.engine.world import start_accelerator

    world = world_size()
    if processes not in (None, world):  # before it waits for processes that may never come
        raise UserError(f"--processes: {processes} asked for, but the launcher started {world}; leave it out there")
    try:
        accelerator = start_accelerator(run, folder)
    except ValueError as error:  # half of a launcher's environment
        raise UserError(f"WORLD_SIZE: {world} processes announced, but they cannot be joined: {error}") from error
    if accelerator.num_processes != world:
        raise UserError(
            f"WORLD_SIZE: {world} processes announced, but Accelerate sees {accelerator.num_processes};"
            " start through `distill ... --processes N`, or see docs/multi_gpu.md for other launchers"
        )
    return accelerator
