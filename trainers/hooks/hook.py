"""The base class of hooks, and the functions that call them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from trainers.engine.session import Session
from trainers.engine.stopping import Stopped


class Hook(ABC):
    """A callable that the loop calls on every rank, after certain numbers of images and at the end of the run.

    To write your own hook, set `every` and define `__call__`, and pass it as `trainers.train(..., hooks=[MyHook()])`. A
    hook may read the session and write files. It must not change `session.state`. It should write on the main process
    alone (`session.accelerator.is_main_process`). A UserError that a hook raises on every rank ends the run.

    Attributes:
        every: The number of images between two calls. At 0 the hook is never called.
    """

    every: int

    def due(self, before: int, now: int, total: int) -> bool:
        """Return whether the hook is due after an update from `before` to `now` images, in a run of `total` images."""
        return self.every > 0 and (now // self.every > before // self.every or now >= total)

    def start(self, session: Session) -> None:  # noqa: B027 (most hooks have nothing to do then)
        """Do what comes before the first update of this start or resume of the run."""

    @abstractmethod
    def __call__(self, session: Session) -> None:
        """Run the hook, after the update that made it due."""


def call_due(session: Session, hooks: Sequence[Hook], before: int) -> None:
    """Call the hooks that the update from `before` images made due."""
    now, total = session.state.images, session.run.images
    call_in_turn(session, [hook for hook in hooks if hook.due(before, now, total)])


def call_at_end(session: Session, hooks: Sequence[Hook]) -> None:
    """Call the hooks that the end of a run makes due and its last update did not, where it ends before its last image.

    It does so once: a resume of a run that has ended so calls none again.
    """
    state, total = session.state, session.run.images
    if session.ended is None or state.ended is not None or state.images >= total:
        return
    state.ended = session.ended  # first, so that a resume after a stop in here goes on with the hooks that are left
    now, before = state.images, state.images - session.run.batch_size
    due = [hook for hook in hooks if hook.due(before, now, now) and not hook.due(before, now, total)]
    call_in_turn(session, due)


def call_in_turn(session: Session, hooks: Sequence[Hook]) -> None:
    """Call hooks one after the other.

    If a hook raises Stopped, the names of this hook and of those after it are noted in the state. A resume calls these
    hooks before it trains on.
    """
    for index, hook in enumerate(hooks):
        try:
            hook(session)
        except Stopped:
            session.state.unfinished = [type(one).__name__ for one in hooks[index:]]
            raise
    session.state.unfinished = []
