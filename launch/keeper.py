"""The process beside each worker, which ends the worker's own children when the worker is gone.

A worker that is killed cannot end the processes that it has started, such as those that load data. They are in its
process group, and so is this one. The file runs by its path, without packages, so that it starts in milliseconds.
"""

import os
import signal
import sys
import time
from pathlib import Path

ORPHAN_SECONDS = 600.0  # that a worker has to save and exit after its launcher is gone
CHILDREN_SECONDS = 2.0  # that the children of a worker have to exit after it
POLL_SECONDS = 0.1


def members(group: int) -> set[int]:
    """Return the ids of the processes in a process group that have not ended."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = file.read_bytes().rpartition(b")")[2].split()[:3]
        except (OSError, ValueError):  # it ended meanwhile
            continue
        if int(its_group) == group and state not in (b"Z", b"X"):
            found.add(int(file.parent.name))
    return found


def parent(process: int) -> int | None:
    """Return the id of a process's parent, or None if the process is gone."""
    try:
        return int(Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return None


def keep(worker: int, launcher: int) -> None:
    """Wait until a worker is gone, and end the rest of its process group.

    Args:
        worker: The id of the worker, which is the parent of this process and the leader of its process group.
        launcher: The id of the worker's parent. A worker that stays for ORPHAN_SECONDS after its parent is killed.
    """
    end = float("inf")
    while os.getppid() == worker:
        if end == float("inf") and parent(worker) not in (launcher, None):
            end = time.monotonic() + ORPHAN_SECONDS
        if time.monotonic() > end:
            os.kill(worker, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    os.killpg(0, signal.SIGTERM)  # first, so that Python's own helper can free the memory that the others share
    end = time.monotonic() + CHILDREN_SECONDS
    while members(os.getpgrp()) != {os.getpid()}:
        if time.monotonic() > end:
            os.killpg(0, signal.SIGKILL)  # this process too
        time.sleep(POLL_SECONDS / 5)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # a scheduler sends them to every process of a job
    keep(int(sys.argv[1]), int(sys.argv[2]))
