"""The memory that a process takes."""

import re
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
GIB = 2**30


def peak_memory(device: torch.device) -> float:
    """Return the most memory that this process has taken so far, in GiB. No device waits.

    It is that of torch's allocator on a GPU. On a CPU it is the resident memory of the process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    if STATUS.is_file() and (found := re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())):
        return int(found[1]) / 2**20
    import resource  # elsewhere than on Linux; on Linux its number may be that of the process that started this one

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB  # in bytes on macOS
