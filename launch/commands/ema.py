"""distill ema: an average of another width, made from the snapshots of a run."""

from pathlib import Path
from typing import Annotated

import typer

from launch.options import Moved


def ema(
    folder: Annotated[Path, typer.Argument(help="The folder of a run whose recipe has power_ema.")],
    std: Annotated[float, typer.Option(help="The relative width of the average.")],
    moved: Moved = None,
    images: Annotated[
        int | None, typer.Option(help="The number of images after which it ends. Default: the last snapshot.")
    ] = None,
) -> None:
    """Make the power-function average of another width (EDM2).

    Other commands take it as --which posthoc/STD, or posthoc/STD@IMAGES.
    """
    from trainers.io.console import plain
    from trainers.recipe.strict_yaml import override
    from trainers.runs.posthoc import make_average

    which, synthesis = make_average(folder, std, images, override({}, moved or []))
    plain().print(
        f"--which {which}: relative width {std} after {synthesis.images:,} images, of {len(synthesis.parts)} snapshots;"
        f" {synthesis.missing:.2%} of its profile is missing"
    )
