"""The hook that saves checkpoints."""

from trainers.checkpoints.saver import Saver
from trainers.engine.session import Session
from trainers.engine.stopping import STOP
from trainers.hooks.hook import Hook


class Checkpoints(Hook):
    """A hook that saves the state to checkpoints/IMAGES/ in the run folder, on a thread beside training.

    Args:
        saver: The saver of the run.
        every: The number of images between two saves.
        seconds: The time after which it saves in any case. The clock chooses the updates after which it saves, and
            changes nothing in the states that it saves.
    """

    def __init__(self, saver: Saver, every: int, seconds: float = float("inf")) -> None:
        self.saver, self.every = saver, every
        STOP.save_every(seconds)

    def due(self, before: int, now: int, total: int) -> bool:
        return super().due(before, now, total) or STOP.save_due

    def __call__(self, session: Session) -> None:
        STOP.note_save()
        self.saver.save(session)
