"""The contract of a hook."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from trainers.engine.session import Session
from trainers.engine.stopping import Stopped


class Hook(ABC):
    """Something that happens beside training, on every rank, every so many images and at the end of the run.

    A hook of one's own sets `every` and defines `__call__`; `trainers.train(..., hooks=[MyHook()])` calls it. It may
    read the session and write files, and must not change `session.state`. Where it writes, it asks
    `session.accelerator.is_main_process` first. It may end the run by raising UserError.

    Attributes:
        every: Images between two calls; 0 for never.
    """

    every: int

    def due(self, before: int, now: int, total: int) -> bool:
        """Return whether the update from `before` to `now` images of `total` calls the hook."""
        return self.every > 0 and (now // self.every > before // self.every or now >= total)

    @abstractmethod
    def __call__(self, session: Session) -> None:
        """Do it, after the update that made it due."""


def call_due(session: Session, hooks: Sequence[Hook], before: int) -> None:
    """Call the hooks that the update from `before` images made due."""
    now, total = session.state.images, session.run.images
    call_in_turn(session, [hook for hook in hooks if hook.due(before, now, total)])


def call_in_turn(session: Session, hooks: Sequence[Hook]) -> None:
    """Call hooks one after the other; note in the state which hooks a stop came before, for the resume."""
    for index, hook in enumerate(hooks):
        try:
            hook(session)
        except Stopped:
            session.state.unfinished = [type(one).__name__ for one in hooks[index:]]
            raise
    session.state.unfinished = []
