"""Save checkpoints."""

from __future__ import annotations

from pathlib import Path

from trainers import checkpoint
from trainers.hooks.hook import Hook
from trainers.session import Session


class Checkpoints(Hook):
    """checkpoints/IMAGES/ in the run folder; the newest `keep` stay."""

    def __init__(self, folder: Path, every: int, keep: int) -> None:
        self.root, self.every, self.keep = folder / "checkpoints", every, keep

    def __call__(self, session: Session) -> None:
        checkpoint.save(session, self.root, self.keep)
