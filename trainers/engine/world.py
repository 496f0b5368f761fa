"""The Accelerator of this process: ranks, device, trackers."""

import os
from pathlib import Path

import torch
from accelerate import Accelerator

from trainers.recipe.run import Experiment


def start_accelerator(run: Experiment, folder: Path) -> Accelerator:
    """Make the kernels deterministic, and return the Accelerator of this process with the trackers of the run."""
    torch.backends.cudnn.deterministic = True  # otherwise a resume on a GPU does not continue to the same bits
    torch.backends.cudnn.allow_tf32 = False  # `precision: float32` means float32; bfloat16 is the fast choice
    cpu, trackers = not torch.cuda.is_available(), list(run.tracking) or None
    return Accelerator(cpu=cpu, log_with=trackers, project_dir=str(folder / "tensorboard"))


def default_device() -> torch.device:
    """Return the device of a command that runs in one process: the first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def devices() -> tuple[int, str, bool]:
    """Return how many processes this machine has room for, in numbers and in words, and whether on GPUs.

    Each process takes a GPU. Without GPUs it takes a core, of those that this process may use.
    """
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return count, f"{count} GPUs", True
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return count, f"{count} core{'s' * (count > 1)}", False
