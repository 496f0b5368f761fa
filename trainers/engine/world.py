"""The Accelerator of this process: ranks, device, trackers."""

import os
from pathlib import Path

import torch
from accelerate import Accelerator

from trainers.recipe.run import Experiment


def start_accelerator(run: Experiment, folder: Path) -> Accelerator:
    """Choose the kernels, and return the Accelerator of this process with the trackers of the run."""
    if torch.cuda.is_available():
        choose_kernels(run)
    cpu, trackers = not torch.cuda.is_available(), list(run.tracking) or None
    return Accelerator(cpu=cpu, log_with=trackers, project_dir=str(folder / "tensorboard"))


def choose_kernels(run: Experiment) -> None:
    """Choose the kernels of a GPU for this process by `tf32` and `deterministic` of a recipe."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = run.tf32
    torch.backends.cudnn.deterministic = run.deterministic
    torch.backends.cudnn.benchmark = not run.deterministic  # shapes are static; the fastest may differ between starts
    # Backward passes of attention, for example, add up in an order of their own otherwise. Operators that have no other
    # form warn.
    torch.use_deterministic_algorithms(run.deterministic, warn_only=True)
    # Filling every new tensor would be a kernel more for each. The stubs of torch lack the name.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


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
