"""Leaving in time: signals, a scheduler's time limit, and how the ranks of a run agree on it.

When any rank is told to stop, all ranks finish the same update, save, and raise Stopped. Other commands exit at once:
their files are written atomically, so that rerunning them continues where they stopped.
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

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist
    from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
INTERRUPTED = 130  # the exit code at the second SIGINT
LEAST = 60.0  # seconds before the time limit at which a run stops, at least
ORPHAN = 600  # seconds that a process whose launcher is gone has left
TIME_LIMIT = 1  # in place of a signal's number


class Stopped(Exception):
    """The process was told to stop, and has stopped."""


class Stop:
    """The reason for which this process is to stop, and the agreement of the processes of a run on it."""

    def __init__(self) -> None:
        self.longest_save = 0.0  # seconds
        self.launcher: int | None = None  # the process that started this one as one of several
        self._listening = False
        self._reset()

    def _reset(self) -> None:
        self.reason = 0  # a signal's number, or TIME_LIMIT
        self._interrupts, self._deferred = 0, False
        self._end: float | None = None  # on the clock of time.monotonic, which nobody sets back
        self._group: dist.ProcessGroup | None = None
        self._asked: tuple[Any, torch.Tensor] | None = None
        self._last, self._longest = 0.0, 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let signals stop this process while the context is open.

        An inner context changes nothing, nor does a context on another thread than the main one, which gets no signals.
        """
        if self._listening or threading.current_thread() is not threading.main_thread():
            yield
            return
        self._reset()
        self._listening = True
        before = {one: signal.signal(one, self._on_signal) for one in SIGNALS}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)
            self._listening = False
            self._reset()

    def limit(self, seconds: float) -> None:
        """Stop the run so that it ends within this many seconds; of several limits the first counts."""
        end = time.monotonic() + seconds
        self._end = end if self._end is None else min(end, self._end)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts == 2:
            os._exit(INTERRUPTED)
        if self.reason:
            return
        self.reason = number
        if self.launcher is not None and os.getppid() != self.launcher:
            signal.alarm(ORPHAN)  # nobody is left to end it where it hangs
        if not self._deferred:
            raise Stopped(f"stopped by {self.name}")

    @property
    def name(self) -> str:
        """The name of the reason."""
        return "the time limit" if self.reason == TIME_LIMIT else signal.Signals(self.reason).name

    @contextmanager
    def deferred(self, accelerator: Accelerator) -> Iterator[None]:
        """Let a process that is told to stop go on to its next poll while the context is open. Collective."""
        import torch.distributed as dist  # here, so that `distill --help` does not wait for torch

        self._deferred, self._last, self._longest, self.longest_save = True, time.monotonic(), 0.0, 0.0
        # Past training's own group: an answer is never waited for.
        self._group = dist.new_group(backend="gloo") if accelerator.num_processes > 1 else None
        try:
            yield
            if self._asked is not None:
                self._asked[0].wait()
        finally:
            self._deferred, self._group, self._asked = False, None, None

    def poll(self) -> None:
        """Raise Stopped where a rank was told to stop; every rank calls this between two updates or batches.

        All ranks raise at the same poll. The all-reduce of one poll is read at the next, so that nobody waits for it.
        """
        now = time.monotonic()
        self._longest, self._last = max(self._longest, now - self._last), now
        if self._end is not None and self._end - now < max(LEAST, 2 * self.longest_save + self._longest):
            self.reason = self.reason or TIME_LIMIT
        agreed = self.reason
        if self._group is not None:
            import torch
            import torch.distributed as dist

            agreed = 0
            if self._asked is not None:
                self._asked[0].wait()
                agreed = int(self._asked[1])
            told = torch.tensor(self.reason)
            if not agreed:
                self._asked = (dist.all_reduce(told, dist.ReduceOp.MAX, self._group, async_op=True), told)
        if agreed:
            self.reason, self._asked = agreed, None
            raise Stopped(f"stopped by {self.name}")


STOP = Stop()
"""The one Stop of this process, since signals come to a process."""
