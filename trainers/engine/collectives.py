"""What one rank does for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from distill.errors import UserError

_T = TypeVar("_T")

GONE = "another process of the run is gone"
LOST = (GONE, "closed by peer", "reset by peer", "Broken pipe", "NCCL")  # what gloo and NCCL say of it


def is_lost_process(error: Exception) -> bool:
    """Whether `error` is that another process of the run is gone."""
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in LOST)


def on_main_process(accelerator: Accelerator, work: Callable[[], _T]) -> _T:
    """What `work` gives on the main process, on all of them; its UserError or OSError is raised on all. Collective."""
    found: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            found[0] = work()
        except (UserError, OSError) as error:
            found[1] = error
    if accelerator.num_processes > 1:
        broadcast_object_list(found)
    if found[1] is not None:
        found[1].already_printed = not accelerator.is_main_process  # one line is enough
        raise found[1]
    return cast(_T, found[0])
