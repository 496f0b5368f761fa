"""distill doctor: whether this machine can train, and the facts that a bug report needs."""

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    folder: Annotated[Path, typer.Option(help="The folder in which runs are to be written.")] = Path("runs"),
) -> None:
    """Check this machine and print what a bug report needs; exit code 1 where something is wrong."""
    from launch.checks import run_checks

    if run_checks(folder):
        raise typer.Exit(1)
