"""The import of a pretrained network as a teacher's folder: it is tried, written, read back and compared."""

from pathlib import Path

import torch
from torch import Tensor

from distill.denoiser import Denoiser
from distill.encoders.latents import Normalisation
from distill.errors import UserError, naming_final
from distill.random import expand
from distill.teachers import (
    check_pipeline,
    copy_autoencoder,
    copy_pipeline,
    download,
    load_denoiser,
    read_origin,
    read_published,
    refuse_file,
    save_denoiser,
    write_origin,
)
from trainers.io.atomic import atomic_folder, sha256
from trainers.io.console import plain
from trainers.io.teacher_hash import teacher_hash
from trainers.runs.published_file import find_published, published_name

NSR = (0.02, 1.0, 80.0)  # noise-to-signal ratios at which the network is tried


def import_published(file: Path, out: Path, kind: str, vae: str | None = None, digest: str | None = None) -> None:
    """Write a published checkpoint as a teacher's folder. No code in the pickle is run.

    Args:
        file: The published .pkl, or its name, under which it is downloaded.
        out: The folder to write.
        kind: The kind of network, "edm" or "edm2".
        vae: The autoencoder of its latents, as a folder or an id on the hub. None for no autoencoder.
        digest: The SHA-256 that the file must have. None for any.

    Raises:
        UserError: The file is damaged, cannot be downloaded or holds another network, or `out` is not empty.
    """
    refuse_filled(out)
    file = find_published(file, kind, digest)
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
    write_and_compare(found.denoiser, out, vae, published_name(file, kind))


def import_pipeline(source: str, out: Path, resolution: int | None = None, guidance: float | None = None) -> None:
    """Write a diffusers pipeline as a teacher's folder.

    Args:
        source: The folder of a pipeline, or its id on the hub.
        out: The folder to write.
        resolution: Pixels to a side. None for the pipeline's default.
        guidance: The guidance scale that is an input of a network such as FLUX.1-dev. None for 3.5.

    Raises:
        UserError: The pipeline is missing or of no known family, or `out` is not empty.
    """
    refuse_filled(out)
    place = Path(source)
    refuse_file(place)
    folder = place if place.is_dir() else download(source)
    check_pipeline(folder)
    console = plain()
    with atomic_folder(out) as staging, naming_final(folder, staging):  # a flaw is one of the source
        copy_pipeline(folder, staging, resolution=resolution, guidance=guidance)
        if (origin := read_origin(place) if place.is_dir() else source) is not None:
            write_origin(staging, origin)
        denoiser = load_denoiser(staging)
        console.print(f"pipeline    {source}")
        report(denoiser)
    console.print(f"sha256      {teacher_hash(str(out))} of network and scheduler")
    console.print(f"written to  {out}")


def write_and_compare(denoiser: Denoiser, out: Path, vae: str | None = None, origin: str | None = None) -> None:
    """Try a network, write it, read it back, and compare the two.

    Args:
        denoiser: The network.
        out: The folder to write.
        vae: The autoencoder to write beside it, as a folder or an id on the hub. None for no autoencoder.
        origin: The name under which the network is published. None for no name.

    Raises:
        UserError: An output is not finite, or the network that is read back gives another one.
    """
    tried = report(denoiser)
    with atomic_folder(out) as staging:
        save_denoiser(denoiser, staging)
        if origin is not None:
            write_origin(staging, origin)
        if vae is not None:
            copy_autoencoder(vae, staging / "vae")
        again = load_denoiser(staging)
        if not torch.equal(try_network(again), tried):
            raise UserError(f"import: the network read back from '{out}' differs")
        if (decoder := again.network.autoencoder) is not None:
            corner = (slice(1), slice(None), *[slice(8)] * (tried.ndim - 2))  # a small part of one latent is enough
            if not bool(decoder.decode(tried[corner]).isfinite().all()):
                raise UserError("--vae: what the autoencoder makes is not finite; nothing was written")
            plain().print(f"decoder     {vae}, images {again.image_shape}")
    plain().print(f"written to  {out}")


def report(denoiser: Denoiser) -> Tensor:
    """Print the facts of a network, and return its estimates of x0 for pure noise, as `try_network` does.

    Raises:
        UserError: An estimate is not finite.
    """
    network, console = denoiser.network, plain()
    count = sum(parameter.numel() for parameter in denoiser.parameters())
    null = "" if network.null is None else " and the null condition"
    conditions = f"{network.classes} classes{null}"
    if network.conditions:
        conditions = f"conditions {', '.join(network.conditions)}"
    console.print(f"network     {type(network).__name__}, {count:,} parameters, shape {network.shape}")
    console.print(f"            {conditions}, {denoiser.prediction} on {denoiser.path!s:.120}")
    tried = try_network(denoiser)
    sizes = ", ".join(f"{float(x0.square().mean().sqrt()):.3g} at {nsr:g}" for nsr, x0 in zip(NSR, tried, strict=True))
    console.print(f"forward     root mean square of the denoised by noise-to-signal ratio: {sizes}")
    if not bool(tried.isfinite().all()):
        raise UserError("import: the network's output is not finite; nothing was written")
    return tried


@torch.no_grad()
def try_network(denoiser: Denoiser) -> Tensor:
    """Return estimates of x0 [3, C, *spatial] for pure noise, one for each ratio of NSR, with example conditions."""
    network, path = denoiser.network, denoiser.path
    t = path.time(torch.tensor(NSR, dtype=torch.float64))
    noise = torch.randn(3, *network.shape, generator=torch.Generator().manual_seed(0))
    # The second moment of x_t: pure noise is scaled to the size that the network has seen in training.
    power = (path.alpha(t) * denoiser.sigma_data) ** 2 + path.sigma(t) ** 2
    x0: Tensor = denoiser(expand(power.sqrt().float(), noise) * noise, t, network.example(3))
    return x0


def refuse_filled(out: Path) -> None:
    """Raise UserError when `out` exists and is not an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"import: '{out}' exists already; name another folder")
