"""The hook that saves checkpoints."""

from trainers.checkpoints.saver import Saver
from trainers.engine.session import Session
from trainers.hooks.hook import Hook


class Checkpoints(Hook):
    """A hook that saves the state to checkpoints/IMAGES/ in the run folder, on a thread beside training."""

    def __init__(self, saver: Saver, every: int) -> None:
        self.saver, self.every = saver, every

    def __call__(self, session: Session) -> None:
        self.saver.save(session)
