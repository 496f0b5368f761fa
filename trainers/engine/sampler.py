"""Samplers of a model, in the precision and by the sampler of its run."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distill.conditions import Condition, ConditionLike
from distill.denoiser import Denoiser, GuidableDenoiser
from distill.generator import Generator
from trainers.io.images import to_images
from trainers.recipe.run import Experiment, Run

WEAK_TEACHER = "weak teacher of the sampler"
"""The name among the further networks of a run of the weak teacher by which its sampler guides."""

Sampler = Callable[[Tensor, ConditionLike], Tensor]
"""(z [B, C, *spatial] unit normal, cond) -> samples [B, C, *spatial], without a graph."""


def make_sampler(model: Generator | GuidableDenoiser, run: Experiment) -> Sampler:
    """Return the sampler of a model.

    Args:
        model: A Generator, which takes one evaluation, or a denoiser, guided or not, which the recipe's sampler takes
            several of.
        run: The recipe, with the sampler, and the dtype that the noise and the condition are cast to.

    Returns:
        (z [B, C, *spatial] unit normal of any dtype, condition) -> samples [B, C, *spatial].
    """
    draw = model if isinstance(model, Generator) else partial(run.sampler.sample, model)

    @torch.no_grad()
    def sampler(z: Tensor, cond: ConditionLike = None) -> Tensor:
        samples: Tensor = draw(z.to(run.dtype), Condition.of(cond).to(z.device, run.dtype))
        return samples

    return sampler


def sampled_teacher(
    run: Experiment, teacher: GuidableDenoiser, frozen: Mapping[str, Any] | None = None
) -> GuidableDenoiser:
    """Return a teacher as a run samples it: under the guidance of its sampler, or else under that of its objective.

    Args:
        run: The recipe.
        teacher: The teacher.
        frozen: The further networks of the run. None where they are not loaded, and do not guide.
    """
    if run.sampler.guidance is not None:
        return run.sampler.guidance.guide(teacher, None if frozen is None else frozen.get(WEAK_TEACHER))
    return run.objective.target(teacher, frozen) if isinstance(run, Run) else teacher


def make_image_sampler(sampler: Sampler, model: Generator | Denoiser) -> Sampler:
    """Return a sampler whose samples are images: latents of `model` are decoded."""
    return lambda z, cond: to_images(sampler(z, cond), model)
