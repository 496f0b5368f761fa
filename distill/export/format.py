"""The description of an export: its writer, its reader, and the Python lines with which users load it."""

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
WITHOUT_CARD = "A copy that diffusers saves has no card: copy this README.md and its pictures into it."
CLASS_NAMES = "id2label.json"  # in an export whose classes have names: {number: name}


@dataclass(frozen=True)
class Inputs:
    """The inputs from which a generator and its export make samples.

    Attributes:
        noise: Unit normal noise [B, ...], the first numbers that a torch.Generator of `seed` draws.
        seed: The seed of `noise`, for pipelines that draw their noise themselves.
        cond: The condition [B, ...].
    """

    noise: Tensor
    seed: int
    cond: Condition


Reader: TypeAlias = Callable[[Inputs], Tensor]
"""A function from inputs to samples, or to images in [-1, 1], [B, ...], in float32 on the CPU."""


@dataclass(frozen=True)
class Source:
    """The place where a card's Python lines find the export.

    Attributes:
        name: The name of the folder, or the id of the model on the hub.
        hub: Whether `name` is an id on the hub.
    """

    name: str
    hub: bool = False

    @property
    def quoted(self) -> str:
        """The name as a string in Python."""
        return json.dumps(self.name, ensure_ascii=False)

    @property
    def folder(self) -> str:
        """The Python lines that set the variable `folder`."""
        if self.hub:
            return f"from huggingface_hub import snapshot_download\n\nfolder = snapshot_download({self.quoted})\n"
        return f"\nfolder = {self.quoted}\n"


@dataclass(frozen=True, kw_only=True)
class Format:
    """The export of one generator in one format.

    Attributes:
        cond: The condition [B, ...] under which samples are compared.
        write: Writes a folder that does not exist yet. It may raise any exception.
        read: Returns a Reader that draws from the folder as users do, from its files alone. It may raise any exception.
        snippet: Returns the Python lines that load the export and make `images` or `latents`.
        loading: A paragraph for the card on what is needed to load the export.
        limits: Sentences for the card on the limits of the export.
        library: The library that the card names, if there is one.
        relation: The relation to the teacher, in the hub's words: finetune, or adapter.
        batches: The batch sizes at which samples are compared.
        shown: Turns the generator's samples into the form that the folder gives, such as clamped images.
    """

    cond: Condition
    write: Callable[[Path], None]
    read: Callable[[Path], Reader]
    snippet: Callable[[Source], str]
    loading: str
    limits: tuple[str, ...] = ()
    library: str | None = None
    relation: str = "finetune"
    batches: tuple[int, ...] = (BATCH,)
    shown: Callable[[Tensor], Tensor] = lambda samples: samples


def constants(generator: Generator) -> dict[str, float]:
    """Return the five numbers that surround a generator's network, which are constants because t is fixed.

    x_t = scale noise, and x0 = from_x_t x_t + from_output network(input_scale x_t, timestep, cond).
    """
    denoiser = generator.denoiser
    t = torch.tensor([generator.t], dtype=torch.float64)
    c = coefficients(denoiser.prediction, denoiser.path, t, denoiser.sigma_data)
    return {
        "scale": float(generator.scale),
        "timestep": float(denoiser.path.network_time(t)),
        "input_scale": float(c.input_scale),
        "from_x_t": float(c.from_x_t),
        "from_output": float(c.from_output),
    }


def seen_classes(generator: Generator) -> list[int]:
    """Return the classes that a generator was trained on."""
    network = generator.denoiser.network
    return sorted(set(range(network.classes)) - set(network.unseen))


def names_by_number(generator: Generator) -> dict[str, str] | None:
    """Return the names of the classes by number, as DiT pipelines and JSON hold them. None where they have none."""
    names = generator.denoiser.network.class_names
    return {str(number): name for number, name in enumerate(names)} if names else None


def float32(generator: Generator) -> Generator:
    """Return a copy of a generator in eval mode on the CPU, which computes in float32. Exports must reproduce it."""
    generator = copy.deepcopy(generator).to("cpu", torch.float32).requires_grad_(False).eval()
    generator.denoiser.autocast_dtype = None
    return generator


def inputs(generator: Generator, cond: Condition, batch: int, seed: int = 0) -> Inputs:
    """Return unit normal noise of `seed` for `batch` samples, with the first `batch` conditions of `cond`."""
    shape = generator.denoiser.network.shape
    noise = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))
    return Inputs(noise, seed, cond.rows(slice(batch)))
