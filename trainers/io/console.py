"""What people read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


def plain(stderr: bool = False, quiet: bool = False) -> Console:
    """A console that prints text as it is: no markup, nothing coloured by guess, no path broken over lines."""
    return Console(stderr=stderr, quiet=quiet, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def tolerate_disk_errors(what: str) -> Iterator[None]:
    """What the disk does wrong within it costs the run `what`, and a line, not more."""
    try:
        yield
    except OSError as error:
        plain(stderr=True).print(f"{what} not written: {error}; training goes on", style="yellow")
