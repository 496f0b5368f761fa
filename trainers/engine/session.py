"""A session: everything a run needs at work, built once from its Run or TeacherRun."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.denoiser import Condition, Denoiser
from distill.errors import UserError
from distill.generator import Generator
from distill.sampling import sample
from trainers.data import Dataset
from trainers.data.batches import Batches, placed
from trainers.data.pairs import PairSet
from trainers.engine.player import TrainState
from trainers.io.images import to_images
from trainers.recipe.run import Experiment

Sampler = Callable[[Tensor, Condition], Tensor]
"""(z [B, C, H, W] unit normal, cond) -> samples [B, C, H, W], without graph."""


@dataclass
class Session:
    """A run at work. `step` moves the state by one batch; `product` is the averaged network that is wanted.

    `dataset` is what batches are made of, in the teacher's terms; `source` the same as it was opened, of pixels.
    """

    run: Experiment
    accelerator: Accelerator
    dataset: Dataset
    source: Dataset
    batches: Batches
    state: TrainState
    step: Callable[[], None]
    product: nn.Module  # Generator or Denoiser, averaged
    sampler: Sampler
    teacher: Denoiser | None = None
    teacher_hash: str | None = None


def make_batches(
    run: Experiment, dataset: Dataset, real: bool, accelerator: Accelerator, pairs: PairSet | None = None
) -> Batches:
    """The batches of this process."""
    rank, world = accelerator.process_index, accelerator.num_processes
    return Batches(run, dataset, real, rank, world, accelerator.device, pairs)


def set_precision(denoiser: Denoiser, run: Experiment) -> Denoiser:
    """Put a denoiser into the precision of `run`."""
    if run.precision == "float64":
        denoiser.double()
    denoiser.autocast_dtype = torch.bfloat16 if run.precision == "bfloat16" else None
    return denoiser


def recompute_blocks(network: nn.Module) -> None:
    """Let the blocks of `network` recompute their activations in a backward pass (gradient checkpointing).

    It is the network's own, of its first part that knows how: `enable_gradient_checkpointing()`, as diffusers calls it.
    Raises UserError where there is none.
    """
    for module in network.modules():
        if (enable := getattr(module, "enable_gradient_checkpointing", None)) is not None:
            try:
                return cast(None, enable())
            except ValueError:  # a model of diffusers' without
                break
    raise UserError(f"gradient_checkpointing: {type(network).__name__} cannot recompute its activations; leave it out")


def make_sampler(model: nn.Module, run: Experiment) -> Sampler:
    """How to sample `model`: a Generator in one evaluation, a Denoiser in 35; from noise of any floating dtype."""
    draw = model if isinstance(model, Generator) else partial(sample, cast(Denoiser, model))

    @torch.no_grad()
    def sampler(z: Tensor, cond: Condition) -> Tensor:
        return draw(z.to(run.dtype), placed(cond, z.device, run.dtype))

    return sampler


def make_image_sampler(sampler: Sampler, model: nn.Module) -> Sampler:
    """(z, cond) -> what `sampler` makes with `model`, as images."""
    return lambda z, cond: to_images(sampler(z, cond), model)
