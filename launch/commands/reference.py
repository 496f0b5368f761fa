"""distill reference: the statistics of real images under a published protocol."""

from pathlib import Path
from typing import Annotated

import typer

from launch.options import cache_folder, inception_file


def reference(
    data: Annotated[str, typer.Argument(help="Pictures by their path, or the data as in a recipe.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    protocol: Annotated[str, typer.Option(help="The protocol; its number of samples does not matter.")] = "fid50k",
    resolution: Annotated[
        int | None, typer.Option(help="The side in pixels to which pictures are cropped and resized.", min=1)
    ] = None,
    mode: Annotated[str, typer.Option(help="RGB, or L for grey pictures.")] = "RGB",
) -> None:
    """Compute the statistics of real images, which an evaluation compares samples with.

    A call that was killed can be repeated, and continues. Several calls at the same time divide the work.
    """
    import dataclasses

    from distill.errors import UserError
    from distill.metrics import read_protocol
    from distill.metrics.features import InceptionFeatures
    from trainers.engine.world import default_device
    from trainers.evaluation.references import compute_reference, write_reference
    from trainers.io.console import plain
    from trainers.recipe.words import open_given

    if out.suffix != ".safetensors":
        raise UserError(f"--out: '{out}' must end in .safetensors")
    features, _ = read_protocol(protocol)
    if isinstance(features, InceptionFeatures):
        features = dataclasses.replace(features, weights=inception_file())
    extractor = features.load().to(default_device())
    stored = compute_reference(open_given(data, resolution, mode), extractor, cache_folder())
    write_reference(stored, out)
    plain().print(f"{stored.protocol}({stored.reference}): {out}")
