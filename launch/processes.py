"""Starting and joining the processes of a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from distill.errors import UserError
from trainers.run import Experiment


def in_world() -> bool:
    """Whether a launcher (ours, accelerate launch, torchrun) started this process as one of several."""
    return "WORLD_SIZE" in os.environ


def launch_here(processes: int) -> bool:
    """Whether this process must start `processes` workers instead of training itself."""
    return processes > 1 and not in_world()


def relaunch(processes: int, arguments: list[str]) -> None:
    """Run `distill ARGUMENTS` in `processes` processes on this machine through Accelerate; ends this process.

    Accelerate multiplies processes without GPUs only when told so by the environment: with its --cpu flag it would
    start one, silently.
    """
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment["ACCELERATE_USE_CPU"] = "true"
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    command += ["--num_processes", str(processes), "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", "0", "-m", "launch.main", *arguments]
    sys.exit(subprocess.run(command, env=environment, check=False).returncode)


def join_world(processes: int | None, run: Experiment, folder: Path) -> Accelerator:
    """This process's Accelerator with the run's trackers; raises UserError when its world is not the one asked for."""
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(), log_with=list(run.tracking) or None, project_dir=str(folder / "tensorboard")
    )
    wanted = processes if processes is not None else int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != wanted:
        raise UserError(
            f"--processes: {wanted} asked for, but Accelerate sees {accelerator.num_processes};"
            " start through `distill ... --processes N`, or see docs/multi_gpu.md for other launchers"
        )
    return accelerator
