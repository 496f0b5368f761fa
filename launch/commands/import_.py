"""distill import: a pretrained network as a teacher's folder."""

from pathlib import Path
from typing import Annotated

import typer

File = Annotated[
    Path, typer.Argument(metavar="FILE", help="The published .pkl, or its published name, which downloads it to here.")
]
Out = Annotated[Path, typer.Argument(help="The folder to write. The key `teacher` of a recipe names it.")]
Digest = Annotated[str | None, typer.Option("--sha256", help="The SHA-256 that the file must have.", metavar="HEX")]

import_app = typer.Typer(help="Turn a pretrained network into a teacher's folder.", no_args_is_help=True)


@import_app.command()
def edm(file: File, out: Out, sha256: Digest = None) -> None:
    """Import an EDM checkpoint: DDPM++, NCSN++ or ADM. Nothing in the pickle is run."""
    from trainers.runs.import_teacher import import_published

    import_published(file, out, "edm", digest=sha256)


@import_app.command()
def edm2(
    file: File,
    out: Out,
    vae: Annotated[
        str | None,
        typer.Option(help="The autoencoder that decodes its latents: a folder, or an id on the hub."),
    ] = None,
    sha256: Digest = None,
) -> None:
    """Import an EDM2 checkpoint. Nothing in the pickle is run."""
    from trainers.runs.import_teacher import import_published

    import_published(file, out, "edm2", vae, sha256)


@import_app.command()
def diffusers(
    source: Annotated[str, typer.Argument(help="The folder of a pipeline, or its id on the hub.")],
    out: Out,
    resolution: Annotated[int | None, typer.Option(help="Pixels to a side. Default: the pipeline's own.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="The guidance scale that is an input of FLUX.1-dev. Default: 3.5.")
    ] = None,
) -> None:
    """Import a diffusers pipeline: DDPM, DiT, Stable Diffusion 1.x, 2.x, XL, 3, PixArt, FLUX.1 or Sana."""
    from trainers.runs.import_teacher import import_pipeline

    import_pipeline(source, out, resolution, guidance)
