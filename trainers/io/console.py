"""Consoles that print plain lines, and the progress of slow commands."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

SECONDS_BETWEEN = 60.0  # lines of progress in a file


class _Plain(Console):
    """A console that goes on in silence when nobody reads its output any more, since a run has still to save.

    Rich's own ends the program.
    """

    def on_broken_pipe(self) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.file.fileno())
        os.close(null)


def plain(stderr: bool = False, quiet: bool = False) -> Console:
    """Return a console that prints text as it is, without markup, guessed colours or line breaks inside paths.

    Args:
        stderr: Whether it prints to stderr.
        quiet: Whether it prints nothing, as on all ranks but the first.
    """
    return _Plain(stderr=stderr, quiet=quiet, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def tolerate_disk_errors(what: str, then: str = "training goes on") -> Iterator[None]:
    """Print an OSError inside the context in one line, and go on.

    Args:
        what: The beginning of the line, such as "the samples at 1,000 images are".
        then: The end of the line.
    """
    try:
        yield
    except OSError as error:
        plain(stderr=True).print(f"{what} not written: {error}; {then}", style="yellow")


@contextmanager
def progress(quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows on stderr at which step a slow command is.

    A terminal shows it in place. A file gets no line in the first minute, and then at most one a minute.

    Args:
        quiet: Whether it shows nothing, as on all ranks but the first.
    """
    console = plain(stderr=True, quiet=quiet)
    if console.is_terminal:
        with console.status("") as status:
            yield lambda step: status.update(step)
        return
    last = time.monotonic()

    def say(step: str) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN:
            last = time.monotonic()
            console.print(step)

    yield say
