"""Snapshots of the power-function averages of a run, and averages of other widths that are made from them (EDM2)."""

import shutil
from collections.abc import Container, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distill.errors import UserError, options
from distill.power_ema import WIDEST, posthoc
from trainers.checkpoints.checkpoint import folders, is_moment, load_module, save_tensors
from trainers.io.atomic import atomic_folder, sync

SNAPSHOTS = "power_ema"
MOST_MISSING = 0.1  # the largest relative L2 distance to a wanted profile that is accepted


class Snapshot(NamedTuple):
    """A saved power-function average.

    Attributes:
        images: The number of images after which it was taken.
        std: The relative width of its profile.
        file: Its weights, power_ema/IMAGES/STD.safetensors in the run folder.
    """

    images: int
    std: float
    file: Path


class Synthesis(NamedTuple):
    """An average as a linear combination of snapshots.

    Attributes:
        images: The number of images after which the average ends.
        std: The relative width of its profile.
        missing: The relative L2 distance between the wanted profile and the one that the snapshots make.
        parts: The snapshots with their coefficients, which sum to 1.
    """

    images: int
    std: float
    missing: float
    parts: list[tuple[Snapshot, float]]


def write_snapshot(averages: Mapping[float, Mapping[str, Tensor]], images: int, folder: Path) -> None:
    """Write a snapshot of every power-function average into a run folder.

    Args:
        averages: {relative width: {name: weight}}.
        images: The number of images that the run has trained on.
        folder: The run folder.

    Raises:
        OSError: A file cannot be written.
    """
    with atomic_folder(folder / SNAPSHOTS / f"{images:012d}") as staging:
        for std, weights in averages.items():
            save_tensors(weights, staging / f"{std}.safetensors")
            sync(staging / f"{std}.safetensors")
        sync(staging)
    sync(folder / SNAPSHOTS)


def rewind_snapshots(folder: Path, images: int) -> None:
    """Remove the snapshots after `images`, which a resumed run writes again, and those that are half written."""
    for path in (folder / SNAPSHOTS).glob("*"):
        if path.is_dir() and (not is_moment(path.name) or int(path.name) > images):
            shutil.rmtree(path)


def snapshots(folder: Path) -> list[Snapshot]:
    """Return the snapshots in a run folder, in the order in which they were taken."""
    moments = reversed(folders(folder / SNAPSHOTS))
    files = [file for moment in moments for file in sorted(moment.glob("*.safetensors"))]
    widths = {file: width for file in files if (width := _width(file.stem)) is not None}
    return [Snapshot(int(file.parent.name), width, file) for file, width in widths.items()]


def _width(name: str) -> float | None:
    """Return the relative width that names a snapshot, or None for another file."""
    with suppress(ValueError):
        if 0 < (width := float(name)) < WIDEST:
            return width
    return None


def synthesis_of(found: list[Snapshot], std: float, images: int) -> Synthesis:
    """Return the combination of snapshots that comes closest to a wanted average (EDM2, arXiv:2312.02696, section 3.2).

    Args:
        found: The snapshots of the run.
        std: The relative width of the average.
        images: The number of images after which the average ends. A snapshot must have been taken there.

    Raises:
        UserError: No profile has this width, no snapshot was taken at `images`, or more than MOST_MISSING of the
            profile would be missing.
    """
    ends = sorted({snapshot.images for snapshot in found})
    if images not in ends:
        near = sorted(sorted(ends, key=lambda end: abs(end - images))[:2])
        raise UserError(f"images: no snapshot was taken at {images}; the nearest are at {', '.join(map(str, near))}")
    used = [snapshot for snapshot in found if snapshot.images <= images]
    coefficients, missing = posthoc([one.images for one in used], [one.std for one in used], images, std)
    if missing > MOST_MISSING:
        widths = options(sorted({one.std for one in used}))
        raise UserError(
            f"std: {std} cannot be made of {len(used)} snapshots of widths {widths}: {missing:.1%} of its profile would"
            f" be missing, at most {MOST_MISSING:.0%} may; snapshots more often, or a nearer width in power_ema.stds,"
            " make it"
        )
    return Synthesis(images, std, missing, list(zip(used, coefficients.tolist(), strict=True)))


@torch.no_grad()
def synthesise(model: nn.Module, synthesis: Synthesis, frozen_names: Container[str] = ()) -> None:
    """Load an average that is combined from snapshots into a network, in place.

    Parameters are summed in float64. Buffers are those of the last snapshot.

    Args:
        model: The network.
        synthesis: The combination.
        frozen_names: The parameters that the snapshots lack. They stay as they are.
    """
    parameters = [parameter for name, parameter in model.named_parameters() if name not in frozen_names]
    totals = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
    for snapshot, coefficient in synthesis.parts:
        load_module(model, snapshot.file, frozen_names)
        for total, parameter in zip(totals, parameters, strict=True):
            total.add_(parameter, alpha=coefficient)
    for total, parameter in zip(totals, parameters, strict=True):
        parameter.copy_(total)
