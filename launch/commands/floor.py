"""distill floor: what the network of a run can do in one evaluation, whatever the objective."""

from pathlib import Path
from typing import Annotated

import typer

from launch.options import with_environment


def floor(
    folder: Annotated[Path, typer.Argument(help="The run folder.")],
    samples: Annotated[
        int | None, typer.Option(help="The number of samples of each model. Default: the recipe's.", min=2)
    ] = None,
    pairs: Annotated[
        int | None, typer.Option(help="The number of ODE pairs. Default: a quarter of the images of the run.", min=1)
    ] = None,
) -> None:
    """Train the run's network on ODE pairs, and by a discriminator alone, and print the distances in floor.json.

    Each takes as many images as the run. A call that was killed can be repeated.
    """
    from rich.table import Table

    from trainers.floor import measure_floor
    from trainers.io.console import plain

    console = plain(stderr=True)
    found = measure_floor(folder, samples, pairs, console.print, with_environment)
    table = Table(title=f"Frechet distance in {found['protocol']}, {found['samples']:,} samples each")
    for column in ("", "distance", "/ teacher", "/ floor"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for name in ("student", "regression", "adversarial", "teacher"):
        if name in found:
            distance = found[name]
            table.add_row(
                name, f"{distance:.4f}", f"{distance / found['teacher']:.2f}", f"{distance / found['floor']:.2f}"
            )
    plain().print(table)
