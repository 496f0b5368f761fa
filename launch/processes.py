"""Starting and joining the processes of a run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator

from distill.errors import UserError
from trainers.run import Experiment


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
    """Run `distill ARGUMENTS` in `processes` processes on this machine through Accelerate; ends this process.

    It ends with the exit code of the worker that failed first, and ends the workers when it is told to end itself.
    Accelerate multiplies processes without GPUs only when told so by the environment: with its --cpu flag it would
    start one, silently. Raises UserError when there are fewer GPUs than processes.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    elif processes > torch.cuda.device_count():
        raise UserError(f"--processes: {processes} asked for, this machine has {torch.cuda.device_count()} GPUs")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    options = ["--multi_gpu", "--num_machines", "1", "--num_processes", str(processes), "--main_process_port", "0"]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "launch.main"]
    debug = ["--debug"] if "--debug" in sys.argv else []
    try:
        launch_command(launch_command_parser().parse_args([*options, *arguments, *debug]))
    except ChildFailedError as error:  # the worker has said why
        code = error.get_first_failure()[1].exitcode
        sys.exit(code if code > 0 else 128 - code)
    except SignalException as error:
        sys.exit(128 + int(error.sigval))
    sys.exit(0)


def join_world(processes: int | None, run: Experiment, folder: Path) -> Accelerator:
    """This process's Accelerator with the run's trackers; raises UserError when its world is not the one asked for."""
    world = world_size()
    if processes not in (None, world):  # before it waits for processes that may never come
        raise UserError(f"--processes: {processes} asked for, but the launcher started {world}; leave it out there")
    torch.backends.cudnn.deterministic = True  # or no resume on a GPU repeats its bits
    torch.backends.cudnn.allow_tf32 = False  # float32 is what the recipe says; bfloat16 is the fast choice
    cpu, trackers, logs = not torch.cuda.is_available(), list(run.tracking) or None, str(folder / "tensorboard")
    try:
        accelerator = Accelerator(cpu=cpu, log_with=trackers, project_dir=logs)
    except ValueError as error:  # half of a launcher's environment
        raise UserError(f"WORLD_SIZE: {world} processes announced, but they cannot be joined: {error}") from error
    if accelerator.num_processes != world:
        raise UserError(
            f"WORLD_SIZE: {world} processes announced, but Accelerate sees {accelerator.num_processes};"
            " start through `distill ... --processes N`, or see docs/multi_gpu.md for other launchers"
        )
    return accelerator
