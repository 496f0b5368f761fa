"""The base class of hooks, and the functions that call them."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

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
    """Call the hooks that the update from `before` images made due, and after one that ends the run those of an end."""
    now, total = session.state.images, session.run.images
    _call_in_turn(session, hooks, lambda hook: hook.due(before, now, total if session.ended is None else now))


def call_unfinished(session: Session, hooks: Sequence[Hook]) -> None:
    """Call the hooks that a stop came before, at the images of the checkpoint, and those that their end makes due."""
    names, now = list(session.state.unfinished), session.state.images
    before = now - session.run.batch_size
    left = [type(hook).__name__ in names for hook in hooks]
    rest = hooks[left.index(True) :] if any(left) else []
    _call_in_turn(
        session,
        rest,
        lambda hook: type(hook).__name__ in names or (session.ended is not None and hook.due(before, now, now)),
    )


def _call_in_turn(session: Session, hooks: Sequence[Hook], is_due: Callable[[Hook], bool]) -> None:
    """Call the hooks that are due, one after the other. Whether one is due is asked when those before it were called.

    If a hook raises Stopped, the names of this hook and of those that are due after it are noted in the state. A resume
    calls these hooks before it trains on.
    """
    for index, hook in enumerate(hooks):
        if is_due(hook):
            start = time.perf_counter()
            try:
                hook(session)
            except Stopped:
                session.state.unfinished = [type(one).__name__ for one in hooks[index:] if is_due(one)]
                raise
            session.hook_seconds += time.perf_counter() - start
    session.state.unfinished = []
