"""Early stops of a run, by signals or by a time limit, and saves by the clock. All ranks agree on both.

When any rank is told to stop, all ranks finish the same update, save, and raise Stopped. Other commands exit at once.
Their files are written atomically, so that the same command continues where it stopped.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from trainers.io.parents_end import at_parents_end

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist
    from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
EXIT_INTERRUPTED = 130  # the exit code of a process that a second SIGINT ends
MARGIN = 60.0  # the least number of seconds before the time limit at which a run stops
TIME_LIMIT = 1  # the reason of a stop that no signal caused; else the reason is the number of the signal


class Stopped(Exception):
    """The exception of a process that was told to stop, and whose work can be continued later."""


class Stop:
    """The request to stop this process, and the agreement of all ranks of a run on it.

    Attributes:
        reason: The number of the signal that asked for the stop, or TIME_LIMIT. 0 while nothing has.
        longest_save: The seconds of the longest save so far.
        save_due: Whether all ranks have agreed that it is time for a save.
        follows: Whether this process ends with its parent, which is the launcher of several processes.
    """

    def __init__(self) -> None:
        self.longest_save = 0.0
        self.follows = False
        self._listening = False
        self._reset()

    def _reset(self) -> None:
        """Forget the request, as in a fresh process."""
        self.reason = 0
        self._interrupts, self._deferred = 0, False
        self._end = float("inf")  # by time.monotonic, which no change of the clock moves
        self.save_due, self._save_every, self._last_save = False, float("inf"), 0.0  # seconds
        self._group: dist.ProcessGroup | None = None
        self._pending: tuple[Any, torch.Tensor] | None = None  # the all-reduce under way, and its tensor
        self._last_poll, self._longest_update = 0.0, 0.0  # seconds

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let signals stop this process while the context is open.

        A context inside another one does nothing. Neither does a context on another thread than the main one, since
        Python delivers signals to the main thread.
        """
        if self._listening or threading.current_thread() is not threading.main_thread():
            yield
            return
        self._reset()
        self._listening = True
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._listening = False
            self._reset()

    def limit(self, seconds: float) -> None:
        """Make the run end within `seconds` from now. Of several limits the earliest counts."""
        self._end = min(self._end, time.monotonic() + seconds)

    def save_every(self, seconds: float) -> None:
        """Make a save due whenever the last one began `seconds` ago, until the run ends."""
        self._save_every, self._last_save = seconds, time.monotonic()

    def note_save(self) -> None:
        """Note that a save begins."""
        self.save_due, self._last_save = False, time.monotonic()

    def follow_parent(self) -> None:
        """Have Linux kill this process when its parent ends, even by SIGKILL, unless it trains.

        Before it trains it has nothing to save, and a signal that Python handles could be lost in an import or wait
        until a library returns.
        """
        self.follows = True
        at_parents_end(signal.SIGKILL)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Note a signal. Outside training, raise Stopped. In training, the next poll raises it."""
        self._interrupts += number == signal.SIGINT
        if self._interrupts == 2:
            os._exit(EXIT_INTERRUPTED)  # without saving: a second Ctrl-C means now
        if self.reason:
            return
        self.reason = number
        if not self._deferred:
            raise Stopped(f"stopped by {self.name}")

    @property
    def name(self) -> str:
        """The name of the signal that asked for the stop, or "the time limit"."""
        return "the time limit" if self.reason == TIME_LIMIT else signal.Signals(self.reason).name

    @contextmanager
    def deferred(self, accelerator: Accelerator) -> Iterator[None]:
        """Defer stops to the next poll while the context is open. Collective."""
        import torch.distributed as dist  # here, so that `distill --help` does not wait for torch

        self._deferred, self._last_poll, self._longest_update = True, time.monotonic(), 0.0
        self.longest_save = 0.0
        if self.follows:
            at_parents_end(signal.SIGTERM)
        # A group of its own on the host: the all-reduces of `poll` overlap with training's and must not mix with them.
        self._group = dist.new_group(backend="gloo") if accelerator.num_processes > 1 else None
        try:
            yield
            if self._pending is not None:  # no message may be left in the group when the process ends
                self._pending[0].wait()
        finally:
            self._deferred, self._group, self._pending = False, None, None
            self.save_due, self._save_every = False, float("inf")

    def poll(self) -> None:
        """Raise Stopped if some rank was told to stop, and set `save_due` if a save is due on some rank. Collective.

        Every rank calls this between two updates or batches, and all ranks raise at the same poll. A poll starts an
        all-reduce and the next poll reads the result, so that training never waits for the message.
        """
        now = time.monotonic()
        self._longest_update, self._last_poll = max(self._longest_update, now - self._last_poll), now
        # Time is left for one more update and for the save, which may take twice as long as the longest so far.
        if self._end - now < max(MARGIN, 2 * self.longest_save + self._longest_update):
            self.reason = self.reason or TIME_LIMIT
        agreed, save = self.reason, int(now - self._last_save >= self._save_every)
        if self._group is not None:
            import torch
            import torch.distributed as dist

            asked = torch.tensor([agreed, save])
            agreed = save = 0
            if self._pending is not None:  # the all-reduce of the last poll: the largest numbers of all ranks
                self._pending[0].wait()
                agreed, save = self._pending[1].tolist()
            if not agreed:
                self._pending = (dist.all_reduce(asked, dist.ReduceOp.MAX, self._group, async_op=True), asked)
        self.save_due = self.save_due or bool(save)
        if agreed:
            self.reason, self._pending = agreed, None
            raise Stopped(f"stopped by {self.name}")


STOP = Stop()
"""The Stop of this process. There is one, since signals are sent to a process."""
