"""Leaving in time: signals, a scheduler's time limit, and how the ranks of a run agree on it.

A run that is told to stop finishes its update, saves and leaves by Stopped, on all ranks after the same update, of
whichever it was told. Everything else leaves at once: what it has written is whole, and doing it again goes on.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
INTERRUPTED = 130  # the exit code at the second SIGINT
LEAST = 60.0  # seconds before the time limit at which a run stops, at least
ORPHAN = 600  # seconds that a process whose launcher is gone has left
LAUNCHER = "DISTILL_LAUNCHER"  # in the environment: the id of the process that started this one and others
TIME_LIMIT = 1  # in place of a signal's number


class Stopped(Exception):
    """Told to stop, and stopped."""


class Stop:
    """What this process was told, and what the processes of a run agreed on."""

    def __init__(self) -> None:
        self.longest_save = 0.0  # seconds
        self._reset()

    def _reset(self) -> None:
        self.reason = 0  # a signal's number, or TIME_LIMIT
        self._interrupts, self._hold = 0, False
        self._end: float | None = None  # on the clock of time.monotonic, which nobody sets back
        self._group: dist.ProcessGroup | None = None
        self._asked: tuple[Any, torch.Tensor] | None = None
        self._last, self._longest = 0.0, 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it, signals stop this process."""
        self._reset()
        before = {one: signal.signal(one, self._told) for one in SIGNALS}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)
            self._reset()

    def limit(self, seconds: float) -> None:
        """There are so many seconds left; of several limits the first counts."""
        end = time.monotonic() + seconds
        self._end = end if self._end is None else min(end, self._end)

    def _told(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts == 2:
            os._exit(INTERRUPTED)
        if self.reason:
            return
        self.reason = number
        if LAUNCHER in os.environ and os.getppid() != int(os.environ[LAUNCHER]):
            signal.alarm(ORPHAN)  # nobody is left to end it where it hangs
        if not self._hold:
            raise Stopped(f"stopped by {self.name}")

    @property
    def name(self) -> str:
        """Of the reason."""
        return "the time limit" if self.reason == TIME_LIMIT else signal.Signals(self.reason).name

    @contextmanager
    def held(self, accelerator: Accelerator) -> Iterator[None]:
        """Within it, a process that is told to stop goes on to its next poll; collective."""
        self._hold, self._last, self._longest, self.longest_save = True, time.monotonic(), 0.0, 0.0
        # Past training's own group: an answer is never waited for.
        self._group = dist.new_group(backend="gloo") if accelerator.num_processes > 1 else None
        try:
            yield
            if self._asked is not None:
                self._asked[0].wait()
        finally:
            self._hold, self._group, self._asked = False, None, None

    def poll(self) -> None:
        """Between two updates, or batches of an evaluation, on every rank of a run: raises Stopped where one was told
        to, at the same poll on all, which is one later."""
        now = time.monotonic()
        self._longest, self._last = max(self._longest, now - self._last), now
        if self._end is not None and self._end - now < max(LEAST, 2 * self.longest_save + self._longest):
            self.reason = self.reason or TIME_LIMIT
        agreed = self.reason
        if self._group is not None:
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
"""Signals are the process's, and so is what hears them."""
