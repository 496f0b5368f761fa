"""An export format: a writer, a reader of its files, and the lines with which its user loads them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from distill.conditions import Condition
from distill.generator import Generator
from distill.prediction import coefficients

BATCH = 8


@dataclass(frozen=True)
class Inputs:
    """`noise` [B, ...], unit normal, which is what a torch.Generator of `seed` draws first; `cond` [B, ...]."""

    noise: Tensor
    seed: int
    cond: Condition


Reader: TypeAlias = Callable[[Inputs], Tensor]
"""inputs -> samples or images in [-1, 1], [B, ...], float32 on the CPU."""


@dataclass(frozen=True)
class Source:
    """Where a card's snippet finds the export: the folder of this name, or with `hub` the model of this id."""

    name: str
    hub: bool = False

    @property
    def quoted(self) -> str:
        return json.dumps(self.name, ensure_ascii=False)

    @property
    def folder(self) -> str:
        """Python that names the folder."""
        if self.hub:
            return f"from huggingface_hub import snapshot_download\n\nfolder = snapshot_download({self.quoted})\n"
        return f"\nfolder = {self.quoted}\n"


@dataclass(frozen=True, kw_only=True)
class Format:
    """How one generator is exported in one format.

    `write(folder)` fills a folder that does not exist yet, and `read(folder)` draws from it as its users will, with
    nothing but what is in it; both may raise anything. What both sides make under `cond` [B, ...] is compared at each
    batch size of `batches`; `shown` makes of the generator's samples what the folder gives. `snippet(source)` is Python
    that loads the export and draws `images`, in [0, 1] or as pictures, or `latents`; the rest is for the card.
    """

    cond: Condition
    write: Callable[[Path], None]
    read: Callable[[Path], Reader]
    snippet: Callable[[Source], str]
    loading: str
    limits: tuple[str, ...] = ()
    library: str | None = None
    batches: tuple[int, ...] = (BATCH,)
    shown: Callable[[Tensor], Tensor] = lambda samples: samples


def constants(generator: Generator) -> dict[str, float]:
    """The five numbers that are left of a generator around its network, because t is fixed:

    x_t = scale noise, x0 = from_x_t x_t + from_output network(input_scale x_t, timestep, cond).
    """
    denoiser = generator.denoiser
    t = torch.tensor([generator.t], dtype=torch.float64)
    c = coefficients(denoiser.prediction, denoiser.path, t, t, denoiser.sigma_data)
    return {
        "scale": float(generator.scale),
        "timestep": float(denoiser.path.network_time(t)),
        "input_scale": 1.0 if c.input_scale is None else float(c.input_scale),
        "from_x_t": float(c.from_x_t),
        "from_output": float(c.from_output),
    }


def float32(generator: Generator) -> Generator:
    """A copy in eval mode on the CPU that computes in float32: what an export is to reproduce."""
    generator = copy.deepcopy(generator).to("cpu", torch.float32).requires_grad_(False).eval()
    generator.denoiser.autocast_dtype = None
    return generator


def inputs(generator: Generator, cond: Condition, batch: int, seed: int = 0) -> Inputs:
    """Return noise of `seed`, and the first `batch` conditions of `cond`."""
    shape = generator.denoiser.network.shape
    noise = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))
    return Inputs(noise, seed, cond.rows(slice(batch)))
