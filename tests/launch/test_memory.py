"""On a machine without a GPU, tensors take the pages of those that were freed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from launch.memory import DRIVER

TENSORS, PAGES = 10, 64 * 2**20 // 4096
PROGRAM = f"""
import resource
import torch
from launch.memory import keep_freed_memory
keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):  # malloc finds its blocks
    torch.ones(16, 2**20)
before = faults()
for _ in range({TENSORS}):
    torch.ones(16, 2**20)
print(faults() - before)
"""


def page_faults(**environment: str) -> int:
    """The pages that the kernel clears for ten tensors of 64 MiB, after twenty others."""
    command = [sys.executable, "-c", PROGRAM]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


@pytest.mark.skipif(DRIVER.exists() or platform.libc_ver()[0] != "glibc", reason="nothing is changed on this machine")
def test_freed_memory_is_used_again() -> None:
    assert page_faults(GLIBC_TUNABLES="") < PAGES / 10
    assert page_faults(MALLOC_ARENA_MAX="8") > 0.9 * TENSORS * PAGES  # the user's choice stands
