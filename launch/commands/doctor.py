"""distill doctor: checks of this machine, and the facts for a bug report."""

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    folder: Annotated[Path, typer.Option(help="The folder in which runs are to be written.")] = Path("runs"),
) -> None:
    """Check this machine, and print the facts that a bug report needs. The exit code is 1 if a check fails."""
    from launch.checks import run_checks

    if run_checks(folder):
        raise typer.Exit(1)
