"""The memory that a process keeps for its next tensors, on machines without a GPU."""

import ctypes
import os
import platform
from pathlib import Path

DRIVER = Path("/dev/nvidiactl")
TRIM_THRESHOLD, MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of glibc's <malloc.h>


def keep_freed_memory() -> None:
    """Let malloc keep what is freed, so that tensors on the CPU take the same pages again.

    glibc gives every block of more than 32 MB back to the kernel, which clears its pages anew at the next allocation:
    40 % of the time of an evaluation with 5 million parameters at 32x32. The peak of memory rises by a quarter to a
    third there. With a GPU, whose tensors torch keeps itself, and where a variable MALLOC_... is set, nothing changes.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or DRIVER.exists() or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(MMAP_MAX, 0)
    libc.mallopt(TRIM_THRESHOLD, -1)
