"""Samplers of a model, in the precision of its run."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from distill.conditions import Condition, ConditionLike
from distill.denoiser import Denoiser, GuidableDenoiser
from distill.generator import Generator
from distill.sampling import sample
from trainers.io.images import to_images
from trainers.recipe.run import Experiment

Sampler = Callable[[Tensor, ConditionLike], Tensor]
"""(z [B, C, *spatial] unit normal, cond) -> samples [B, C, *spatial], without a graph."""


def make_sampler(model: Generator | GuidableDenoiser, run: Experiment) -> Sampler:
    """Return the sampler of a model.

    Args:
        model: A Generator, which takes one evaluation, or a denoiser, guided or not, which takes 35 (Heun's method).
        run: The recipe, whose dtype the noise and the condition are cast to.

    Returns:
        (z [B, C, *spatial] unit normal of any dtype, condition) -> samples [B, C, *spatial].
    """
    draw = model if isinstance(model, Generator) else partial(sample, model)

    @torch.no_grad()
    def sampler(z: Tensor, cond: ConditionLike = None) -> Tensor:
        samples: Tensor = draw(z.to(run.dtype), Condition.of(cond).to(z.device, run.dtype))
        return samples

    return sampler


def make_image_sampler(sampler: Sampler, model: Generator | Denoiser) -> Sampler:
    """Return a sampler whose samples are images: latents of `model` are decoded."""
    return lambda z, cond: to_images(sampler(z, cond), model)
