"""The lock of a run folder, in which one run trains at a time."""

import os
import socket
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from distill.errors import UserError
from distill.saved_files import read_bounded

LOCK = ".lock"


def take_lock(lock: FileLock) -> None:
    """Create the run folder if needed, and lock it until release or process exit, even by SIGKILL.

    Raises:
        UserError: Another process has the lock.
    """
    file = Path(lock.lock_file)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except Timeout:
        owner = ""
        with suppress(OSError, ValueError):
            owner = " ".join(read_bounded(file, 1_000).decode().split())[:200]
        owner = owner or "another process"
        raise UserError(f"'{file.parent}' is in use by {owner}; end that run, or take another folder") from None
    # For the message above in another process. Which process has the lock, the system knows.
    file.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
