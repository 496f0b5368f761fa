"""Save checkpoints."""

from __future__ import annotations

from trainers.hooks.hook import Hook
from trainers.saving import Saver
from trainers.session import Session


class Checkpoints(Hook):
    """checkpoints/IMAGES/ in the run folder, written beside training."""

    def __init__(self, saver: Saver, every: int) -> None:
        self.saver, self.every = saver, every

    def __call__(self, session: Session) -> None:
        self.saver.save(session)
