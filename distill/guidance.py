"""Guidance: a denoiser pushed away from a weaker one, again a denoiser. The convention, everywhere and in recipes:

    D_weak + scale (D - D_weak)

so that 1 is no guidance, 0 the weak denoiser alone, and negative scales point away from D. The weak denoiser is D under
the null condition (classifier-free guidance, arXiv:2207.12598, whose own weight is scale - 1; recipe keys `*_cfg`) or a
smaller or earlier model (autoguidance, arXiv:2406.02507; recipe key `*_autoguidance`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.denoiser import Condition, Denoiser
from distill.errors import UserError
from distill.random import Random, expand


@dataclass(frozen=True)
class GuidedDenoiser:
    """weak + scale (strong - weak), with the gradient through both; the attributes are those of `strong`.

    Two calls, not one of a doubled batch: exact for any network, the strong estimate is bit-equal to the unguided one,
    and networks back-propagated one by one hold the activations of a single call. With a Critic's `want`, logits are
    those of the strong call, without guidance: at scale 0, of the weak one.
    """

    strong: Callable[..., Any]
    weak: Callable[..., Any]
    scale: float

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition = None, *want: str) -> Any:
        if self.scale == 0:
            return self.weak(x_t, t, cond, *want)
        strong = self.strong(x_t, t, cond, *want)
        if self.scale == 1 or "logits" in want:
            return strong
        weak = self.weak(x_t, t, cond)
        if isinstance(strong, tuple):
            return weak + self.scale * (strong[0] - weak), *strong[1:]
        return weak + self.scale * (strong - weak)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.strong, name)


def classifier_free(
    denoise: Callable[..., Any], scale: float, null: Callable[[Condition], Condition]
) -> GuidedDenoiser:
    """`denoise` under its condition, guided by itself under the null condition `null(cond)`."""

    def unconditional(x_t: Tensor, t: Tensor, cond: Condition = None, *want: str) -> Any:
        return denoise(x_t, t, null(cond), *want)

    return GuidedDenoiser(denoise, unconditional, scale)


def check_null(teacher: Denoiser, who: str) -> None:
    """Raise UserError, in the name of `who`, where the teacher knows no null condition."""
    if teacher.null_cond is None:
        raise UserError(
            f"objective: {who} needs a teacher with a null condition, this one states none: it must be conditional"
            " and trained with label_dropout"
        )


def drop_conditions(cond: Condition, null: Condition, probability: float, random: Random) -> Condition:
    """`cond` [B, ...] in which every sample's condition gives way to that of `null` with `probability`."""
    drop = random.stream("condition dropout").uniform() < probability

    def pick(given: Tensor, instead: Tensor) -> Tensor:
        return torch.where(expand(drop, given), instead, given)

    if isinstance(cond, Tensor) and isinstance(null, Tensor):
        return pick(cond, null)
    if isinstance(cond, Mapping) and isinstance(null, Mapping):
        return {name: pick(value, null[name]) for name, value in cond.items()}
    return cond
