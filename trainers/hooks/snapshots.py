"""Snapshots of the power-function averages."""

from __future__ import annotations

from pathlib import Path

from trainers.console import spared
from trainers.hooks.hook import Hook
from trainers.run import PowerEMA
from trainers.session import Session
from trainers.snapshots import write


class Snapshots(Hook):
    """power_ema/IMAGES/ in the run folder, where the recipe has a `power_ema`."""

    def __init__(self, folder: Path, settings: PowerEMA | None) -> None:
        self.folder, self.every = folder, settings.snapshot_every if settings else 0

    def __call__(self, session: Session) -> None:
        if session.accelerator.is_main_process:
            with spared(f"the snapshot at {session.state.images:,} images is"):
                write(session.state, self.folder)
