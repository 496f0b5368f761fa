"""Programs that may take only so much memory."""

from __future__ import annotations

import resource
import subprocess
import sys

from tests.tiny import ROOT


def limit(megabytes: int) -> None:
    """Let this process map so much memory beyond what it has mapped; beyond that Python raises MemoryError."""
    with open("/proc/self/statm") as stream:
        mapped = int(stream.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + megabytes * 2**20, resource.RLIM_INFINITY))


def limited(program: str, seconds: float = 60) -> str:
    """The output of a program, which must end well and in time."""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
