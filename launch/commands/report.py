"""distill report and distill compare: runs as pages that a browser opens from disk."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(help="The run folder, of a run that is finished, at work or broken.")],
    out: Annotated[Path | None, typer.Option(help="The file to write. Default: report.html in the run folder.")] = None,
) -> None:
    """Write the report of a run: one HTML file with curves, samples, alarms and the recipe."""
    from trainers.io.console import plain
    from trainers.reports import write_report

    plain().print(str(write_report(folder, out)))


def compare(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, two or more.")],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("comparison.html"),
) -> None:
    """Write the comparison of runs: one HTML file with their curves, numbers, samples, and the keys that differ."""
    from trainers.io.console import plain
    from trainers.reports import write_comparison

    plain().print(str(write_comparison(folders, out)))
