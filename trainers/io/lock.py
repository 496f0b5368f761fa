"""One run at a time in a folder."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from distill.errors import UserError

LOCK = ".lock"


def take(lock: FileLock) -> None:
    """Take the lock of a run folder; raises UserError when another process has it."""
    file = Path(lock.lock_file)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except Timeout:
        owner = file.read_text().strip() or "another process"
        raise UserError(f"'{file.parent}' is in use by {owner}; end that run, or take another folder") from None
    file.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
