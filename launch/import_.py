"""distill import: a pretrained network as a teacher folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import torch
import typer

from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.teachers import Network, load_denoiser, read_ddpm, read_published, save_denoiser
from trainers.console import plain
from trainers.files import replaced, sha256

NSR = (0.02, 1.0, 80.0)  # noise-to-signal ratios at which the network is tried

File = Annotated[Path, typer.Argument(help="the published .pkl")]
Out = Annotated[Path, typer.Argument(help="folder to write; `teacher:` of a recipe names it")]

app = typer.Typer(help="Turn a pretrained network into a teacher folder.", no_args_is_help=True)


@app.command()
def edm(file: File, out: Out) -> None:
    """An EDM checkpoint: DDPM++, NCSN++ or ADM. Nothing in the pickle is run."""
    _import_published(file, out, "edm")


@app.command()
def edm2(file: File, out: Out) -> None:
    """An EDM2 checkpoint. Nothing in the pickle is run."""
    _import_published(file, out, "edm2")


@app.command()
def diffusers(
    source: Annotated[str, typer.Argument(help="folder of a DDPM or DDIM pipeline, or its id on the hub")], out: Out
) -> None:
    """A DDPMPipeline or DDIMPipeline with a UNet2DModel."""
    _refuse_filled(out)
    denoiser = read_ddpm(source)
    plain().print(f"pipeline    {source}")
    _write(denoiser, out)


def _import_published(file: Path, out: Path, kind: str) -> None:
    _refuse_filled(out)
    found = read_published(file, kind)
    console = plain()
    console.print(f"file        {file}")
    console.print(f"sha256      {sha256(file)}")
    console.print(f"settings    {', '.join(f'{name} {value}' for name, value in found.settings.items())}")
    if found.encoder:
        console.print(f"samples     latents of {found.encoder}")
    _write(found.denoiser, out)


def _write(denoiser: Denoiser, out: Path) -> None:
    """Try the network, write it, read it back and compare."""
    network, console = cast(Network, denoiser.network), plain()
    count = sum(parameter.numel() for parameter in denoiser.parameters())
    console.print(f"network     {type(network).__name__}, {count:,} parameters, shape {network.shape}")
    null = "" if network.null is None else " and the null condition"
    console.print(f"            {network.classes} classes{null}, {denoiser.prediction} on {denoiser.path!s:.120}")
    tried = _try(denoiser)
    sizes = ", ".join(f"{float(x0.square().mean().sqrt()):.3g} at {nsr:g}" for nsr, x0 in zip(NSR, tried, strict=True))
    console.print(f"forward     root mean square of the denoised by noise-to-signal ratio: {sizes}")
    if not bool(tried.isfinite().all()):
        raise UserError("import: the network's output is not finite; nothing was written")
    with replaced(out) as staging:
        save_denoiser(denoiser, staging)
        if not torch.equal(_try(load_denoiser(staging)), tried):
            raise UserError(f"import: the network read back from '{out}' differs")
    console.print(f"written to  {out}")


@torch.no_grad()
def _try(denoiser: Denoiser) -> torch.Tensor:
    """x0 [3, C, H, W] for pure noise at the ratios NSR, with as many different labels as there are."""
    network, path = cast(Network, denoiser.network), denoiser.path
    t = path.time(torch.tensor(NSR, dtype=torch.float64))
    noise = torch.randn(3, *network.shape, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(3) % network.classes if network.classes else None
    power = (path.alpha(t) * denoiser.sigma_data) ** 2 + path.sigma(t) ** 2
    x0: torch.Tensor = denoiser(power.sqrt().float()[:, None, None, None] * noise, t, labels)
    return x0


def _refuse_filled(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"import: '{out}' exists already; name another folder")
