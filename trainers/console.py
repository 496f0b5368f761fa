"""What people read."""

from __future__ import annotations

from rich.console import Console


def plain(stderr: bool = False, quiet: bool = False) -> Console:
    """A console that prints text as it is: no markup, nothing coloured by guess, no path broken over lines."""
    return Console(stderr=stderr, quiet=quiet, highlight=False, markup=False, soft_wrap=True)
