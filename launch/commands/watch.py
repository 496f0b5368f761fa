"""distill watch: a run at work in the terminal."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer


def watch(
    folder: Annotated[Path, typer.Argument(help="The run folder.")],
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.2)] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Print one look and end.")] = False,
) -> None:
    """Show how far a run is, its newest numbers and its alarms, from the run folder alone. Ctrl-C ends the view."""
    from rich.live import Live

    from trainers.engine.stopping import Stopped
    from trainers.io.console import plain
    from trainers.reports.terminal import screen

    console = plain()
    if once or not console.is_terminal:
        console.print(screen(folder))
        return
    with (
        Live(screen(folder), console=console, auto_refresh=False) as live,
        suppress(Stopped),
    ):  # a view has nothing to save
        while True:
            time.sleep(every)
            live.update(screen(folder), refresh=True)
