"""distill import: a pretrained network as a teacher folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import torch
import typer

from distill.denoiser import Denoiser, Normalisation
from distill.encoders.encoder import autoencoder, image_shape
from distill.errors import UserError
from distill.teachers import (
    Network,
    copy_autoencoder,
    copy_pipeline,
    download,
    load_denoiser,
    read_published,
    save_denoiser,
)
from distill.teachers.families import Family
from trainers.io.atomic import atomic_folder, sha256
from trainers.io.console import plain
from trainers.runs.distillation import teacher_hash

NSR = (0.02, 1.0, 80.0)  # noise-to-signal ratios at which the network is tried

File = Annotated[Path, typer.Argument(help="the published .pkl")]
Out = Annotated[Path, typer.Argument(help="folder to write; `teacher:` of a recipe names it")]

app = typer.Typer(help="Turn a pretrained network into a teacher folder.", no_args_is_help=True)


@app.command()
def edm(file: File, out: Out) -> None:
    """An EDM checkpoint: DDPM++, NCSN++ or ADM. Nothing in the pickle is run."""
    _import_published(file, out, "edm")


@app.command()
def edm2(
    file: File,
    out: Out,
    vae: Annotated[
        str | None,
        typer.Option(help="autoencoder of its latents, to see samples: a folder, or an id on the hub"),
    ] = None,
) -> None:
    """An EDM2 checkpoint. Nothing in the pickle is run."""
    _import_published(file, out, "edm2", vae)


@app.command()
def diffusers(
    source: Annotated[str, typer.Argument(help="folder of a pipeline, or its id on the hub")],
    out: Out,
    resolution: Annotated[
        int | None, typer.Option(help="pixels to a side; the pipeline's default when left out")
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="what FLUX.1-dev is told; 3.5 when left out")] = None,
) -> None:
    """A diffusers pipeline: DDPM, DiT, Stable Diffusion 1.x, 2.x, XL, 3, PixArt, FLUX.1 or Sana."""
    _refuse_filled(out)
    folder = Path(source) if Path(source).is_dir() else download(source)
    console = plain()
    console.print(f"pipeline    {source}")
    with atomic_folder(out) as staging:
        copy_pipeline(folder, staging, resolution=resolution, guidance=guidance)
        denoiser = load_denoiser(staging)
        _report(denoiser)
    console.print(f"sha256      {teacher_hash(str(out))} of network and scheduler")
    console.print(f"written to  {out}")


def _import_published(file: Path, out: Path, kind: str, vae: str | None = None) -> None:
    _refuse_filled(out)
    found = read_published(file, kind)
    latents = found.denoiser.latents
    if vae is not None and not isinstance(latents, Normalisation):
        held = "pixels" if found.encoder is None else f"latents of {found.encoder}, whose scale the file does not say"
        raise UserError(f"--vae: the network's samples are {held}")
    console = plain()
    console.print(f"file        {file}")
    console.print(f"sha256      {sha256(file)}")
    console.print(f"settings    {', '.join(f'{name} {value}' for name, value in found.settings.items())}")
    if found.encoder:
        scaled = f", (z - {list(latents.mean)}) / {list(latents.std)}" if isinstance(latents, Normalisation) else ""
        console.print(f"samples     latents of {found.encoder}{scaled}")
    _write(found.denoiser, out, vae)


def _write(denoiser: Denoiser, out: Path, vae: str | None = None) -> None:
    """Try the network, write it, with the autoencoder `vae` beside it, read it back and compare."""
    tried = _report(denoiser)
    with atomic_folder(out) as staging:
        save_denoiser(denoiser, staging)
        if vae is not None:
            copy_autoencoder(vae, staging / "vae")
        again = load_denoiser(staging)
        if not torch.equal(_try(again), tried):
            raise UserError(f"import: the network read back from '{out}' differs")
        if (decoder := autoencoder(again)) is not None:
            if not bool(decoder.decode(tried[:1, :, :8, :8]).isfinite().all()):
                raise UserError("--vae: what the autoencoder makes is not finite; nothing was written")
            plain().print(f"decoder     {vae}, images {image_shape(again)}")
    plain().print(f"written to  {out}")


def _report(denoiser: Denoiser) -> torch.Tensor:
    """Say what the network is and what it makes of noise, and return that; raises UserError if it is not finite."""
    network, console = cast(Network, denoiser.network), plain()
    count = sum(parameter.numel() for parameter in denoiser.parameters())
    conditions = getattr(network, "conditions", {})
    null = "" if network.null is None else " and the null condition"
    asked = f"conditions {', '.join(conditions)}" if conditions else f"{network.classes} classes{null}"
    console.print(f"network     {type(network).__name__}, {count:,} parameters, shape {network.shape}")
    console.print(f"            {asked}, {denoiser.prediction} on {denoiser.path!s:.120}")
    tried = _try(denoiser)
    sizes = ", ".join(f"{float(x0.square().mean().sqrt()):.3g} at {nsr:g}" for nsr, x0 in zip(NSR, tried, strict=True))
    console.print(f"forward     root mean square of the denoised by noise-to-signal ratio: {sizes}")
    if not bool(tried.isfinite().all()):
        raise UserError("import: the network's output is not finite; nothing was written")
    return tried


@torch.no_grad()
def _try(denoiser: Denoiser) -> torch.Tensor:
    """x0 [3, C, H, W] for pure noise at the ratios NSR, under as many different conditions as there are."""
    network, path = cast(Network, denoiser.network), denoiser.path
    t = path.time(torch.tensor(NSR, dtype=torch.float64))
    noise = torch.randn(3, *network.shape, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(3) % network.classes if network.classes else None
    cond = network.example(3) if isinstance(network, Family) else labels
    power = (path.alpha(t) * denoiser.sigma_data) ** 2 + path.sigma(t) ** 2
    x0: torch.Tensor = denoiser(power.sqrt().float()[:, None, None, None] * noise, t, cond)
    return x0


def _refuse_filled(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"import: '{out}' exists already; name another folder")
