"""Consoles that print plain lines."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


def plain(stderr: bool = False, quiet: bool = False) -> Console:
    """Return a console that prints text as it is, without markup, guessed colours or line breaks inside paths.

    Args:
        stderr: Whether it prints to stderr.
        quiet: Whether it prints nothing, as on all ranks but the first.
    """
    return Console(stderr=stderr, quiet=quiet, highlight=False, markup=False, soft_wrap=True)


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
