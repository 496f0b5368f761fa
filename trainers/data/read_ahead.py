"""Worker processes that read samples before the training loop asks for them."""

import multiprocessing
import multiprocessing.context
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from distill.errors import UserError
from trainers.io.parents_end import at_parents_end

SEARCHED = 1_000  # requests among which one that came unexpectedly is looked for


class Request(NamedTuple):
    """A micro-batch that the training loop asks for.

    Attributes:
        stream: The name of the stream.
        first: The index of the first sample of the global batch in the stream.
        micro: The number of the micro-batch.
    """

    stream: str
    first: int
    micro: int


class ReadAhead:
    """Samples that worker processes read before they are asked for.

    A request that was not expected drops what was read for others, and is read then. What is returned therefore depends
    on the request alone.

    Args:
        read: (positions [B]) -> samples [B, ...]. It may be any function, since workers are forks of this process.
        positions: (request) -> the positions of its samples, int64 [B].
        upcoming: () -> the requests that the training loop will make from the present round on.
        workers: The number of processes. All share the positions of each request.
    """

    def __init__(
        self,
        read: Callable[[Tensor], Tensor],
        positions: Callable[[Request], Tensor],
        upcoming: Callable[[], Iterator[Request]],
        workers: int,
    ) -> None:
        self.positions, self.upcoming, self.workers = positions, upcoming, workers
        self.coming: Iterator[Request] = iter(())
        self.pending: deque[tuple[Request, list[Future[Any]]]] = deque()
        self.pool = ProcessPoolExecutor(workers, _Forks(), _begin_worker, (read,))

    def take(self, request: Request) -> Tensor:
        """Return the samples [B, ...] of a request, and let the workers go on with those that will follow.

        Raises:
            UserError: A worker ended, or could not read a sample.
        """
        try:
            while self.pending and self.pending[0][0] != request:
                for part in self.pending.popleft()[1]:
                    part.cancel()
            if not self.pending:
                coming = self.upcoming()
                # The search leaves the iterator after the request.
                self.coming = coming if request in islice(coming, SEARCHED) else iter(())
                self._submit(request)
            parts = self.pending.popleft()[1]
            while sum(len(others) for _, others in self.pending) < 2 * self.workers:
                if (following := next(self.coming, None)) is None:
                    break
                self._submit(following)
            return torch.from_numpy(np.concatenate([part.result() for part in parts]))
        except BrokenProcessPool:
            raise UserError(
                "workers: a process that reads samples ended, as the system ends one where memory is short; a resume"
                " goes on from the newest checkpoint, and workers=0 reads in the process of the run"
            ) from None

    def close(self) -> None:
        """End the workers."""
        self.pool.shutdown(cancel_futures=True)

    def _submit(self, request: Request) -> None:
        """Have the workers read a request, in parts."""
        with warnings.catch_warnings():  # Python 3.12 warns of threads beside a fork, which no worker has use for
            warnings.simplefilter("ignore", DeprecationWarning)
            parts = self.positions(request).chunk(self.workers)
            self.pending.append((request, [self.pool.submit(_read_samples, part.numpy()) for part in parts]))


class _Forks(multiprocessing.context.ForkContext):
    """The context of processes that start as forks, so that they need not import anything."""

    class Process(multiprocessing.context.ForkProcess):
        """A worker. The pool ends one by SIGKILL, since workers ignore SIGTERM."""

        terminate = multiprocessing.context.ForkProcess.kill


_read: Callable[[Tensor], Tensor]


def _begin_worker(read: Callable[[Tensor], Tensor]) -> None:
    """Prepare a worker: one thread, and an end with its parent, which alone answers the signals for both."""
    global _read
    _read = read
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    at_parents_end(signal.SIGKILL)
    torch.set_num_threads(1)


def _read_samples(positions: Any) -> Any:
    """Return the samples at `positions` [B] in a worker, as an array: its bytes go through a pipe.

    A tensor would go through shared memory, of which containers have little.
    """
    return _read(torch.from_numpy(positions)).numpy()
