"""The end of this process at that of its parent."""

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1  # of prctl(2): the signal that a process gets when its parent ends


def at_parents_end(number: signal.Signals) -> None:
    """Have Linux send this process a signal when its parent ends, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number))
