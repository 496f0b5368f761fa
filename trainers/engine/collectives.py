"""Work that one process does for all processes."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from distill.errors import UserError

_T = TypeVar("_T")

LOST_PROCESS = "another process of the run is gone"
# Neither gloo nor NCCL has an exception of its own for this: their RuntimeErrors are told apart by these words.
LOST_PROCESS_MARKS = (LOST_PROCESS, "closed by peer", "reset by peer", "Broken pipe", "NCCL")


def is_lost_process(error: Exception) -> bool:
    """Return whether `error` says that another process of the run is gone."""
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in LOST_PROCESS_MARKS)


def on_main_process(accelerator: Accelerator, work: Callable[[], _T]) -> _T:
    """Call `work` on the main process alone, and return its result on every process. Collective.

    Args:
        accelerator: Ranks and collectives.
        work: The function to call. Its result must be picklable.

    Raises:
        UserError: `work` raised it. Every process raises it, so that none is left waiting.
        OSError: As for UserError.
    """
    result: list[Any] = [None, None]  # (value, error)
    if accelerator.is_main_process:
        try:
            result[0] = work()
        except (UserError, OSError) as error:
            result[1] = error
    if accelerator.num_processes > 1:
        broadcast_object_list(result)  # collective: also where `work` failed, since the other ranks wait here
    if result[1] is not None:
        result[1].already_printed = not accelerator.is_main_process  # the main process alone prints the error
        raise result[1]
    return cast(_T, result[0])
