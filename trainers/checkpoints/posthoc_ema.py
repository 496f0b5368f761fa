"""Snapshots of the power-function averages of a run, and other widths made of them afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.power_ema import posthoc
from trainers.checkpoints.checkpoint import folders, load_module, save_tensors
from trainers.io.atomic import atomic_folder, sync

SNAPSHOTS = "power_ema"
MOST_LEFT = 0.1  # of the wanted profile, in L2, that the snapshots may fail to make


@dataclass(frozen=True)
class Snapshot:
    """The average of relative width `std` after `images` images, and its file power_ema/IMAGES/STD.safetensors."""

    images: int
    std: float
    file: Path


@dataclass(frozen=True)
class Synthesis:
    """How snapshots make another average: `parts` with their coefficients, which sum to 1.

    `left` is what they cannot make of its profile: the relative L2 distance.
    """

    images: int
    std: float
    left: float
    parts: list[tuple[Snapshot, float]]


def write_snapshot(averages: Mapping[float, Mapping[str, Tensor]], images: int, folder: Path) -> None:
    """Write the weights of every power-function average, by width, into the run folder."""
    with atomic_folder(folder / SNAPSHOTS / f"{images:012d}") as staging:
        for std, weights in averages.items():
            save_tensors(weights, staging / f"{std}.safetensors")
            sync(staging / f"{std}.safetensors")
        sync(staging)
    sync(folder / SNAPSHOTS)


def rewind_snapshots(folder: Path, images: int) -> None:
    """Drop the snapshots after `images` and half-written ones: a resumed run writes them again."""
    for path in (folder / SNAPSHOTS).glob("*"):
        if path.is_dir() and (not path.name.isdigit() or int(path.name) > images):
            shutil.rmtree(path)


def snapshots(folder: Path) -> list[Snapshot]:
    """Every snapshot in the run folder, the last one last."""
    moments = reversed(folders(folder / SNAPSHOTS))
    return [
        Snapshot(int(moment.name), float(file.stem), file)
        for moment in moments
        for file in sorted(moment.glob("*.safetensors"))
    ]


def synthesis_of(found: list[Snapshot], std: float, images: int) -> Synthesis:
    """How the snapshots `found` make the average of relative width `std` after `images` images.

    Raises UserError for a width that no profile has, an end without a snapshot, and when more than MOST_LEFT of the
    profile would be missing.
    """
    ends = sorted({snapshot.images for snapshot in found})
    if images not in ends:
        near = sorted(sorted(ends, key=lambda end: abs(end - images))[:2])
        raise UserError(f"images: no snapshot was taken at {images}; the nearest are at {', '.join(map(str, near))}")
    used = [snapshot for snapshot in found if snapshot.images <= images]
    coefficients, left = posthoc([one.images for one in used], [one.std for one in used], images, std)
    if left > MOST_LEFT:
        widths = ", ".join(map(str, sorted({one.std for one in used})))
        raise UserError(
            f"std: {std} cannot be made of {len(used)} snapshots of widths {widths}: {left:.1%} of its profile would be"
            f" missing, at most {MOST_LEFT:.0%} may; snapshots more often, or a nearer width in power_ema.stds, make it"
        )
    return Synthesis(images, std, left, list(zip(used, coefficients.tolist(), strict=True)))


@torch.no_grad()
def synthesise(model: nn.Module, synthesis: Synthesis, frozen_names: Container[str] = ()) -> None:
    """Make `model` the average: parameters, but for those `frozen_names`, are summed in float64, buffers are the last
    snapshot's."""
    parameters = [parameter for name, parameter in model.named_parameters() if name not in frozen_names]
    totals = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
    for snapshot, coefficient in synthesis.parts:
        load_module(model, snapshot.file, frozen_names)
        for total, parameter in zip(totals, parameters, strict=True):
            total.add_(parameter, alpha=coefficient)
    for total, parameter in zip(totals, parameters, strict=True):
        parameter.copy_(total)
