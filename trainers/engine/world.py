"""This process's Accelerator: ranks, device, trackers."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator

from trainers.recipe.run import Experiment


def start_accelerator(run: Experiment, folder: Path) -> Accelerator:
    """Return the Accelerator of this process, with the trackers of the run, and make kernels repeat their bits."""
    torch.backends.cudnn.deterministic = True  # or no resume on a GPU repeats its bits
    torch.backends.cudnn.allow_tf32 = False  # float32 is what the recipe says; bfloat16 is the fast choice
    cpu, trackers = not torch.cuda.is_available(), list(run.tracking) or None
    return Accelerator(cpu=cpu, log_with=trackers, project_dir=str(folder / "tensorboard"))


def default_device() -> torch.device:
    """Return the device of a command that takes one process."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
