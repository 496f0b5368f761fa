"""Guidance: a denoiser pushed away from a weaker one, again a denoiser. The convention, everywhere and in recipes:

    D_weak + scale (D - D_weak)

so that 1 is no guidance, 0 the weak denoiser alone, and negative scales point away from D. The weak denoiser is D under
the null condition (classifier-free guidance, arXiv:2207.12598, whose own weight is scale - 1; recipe keys `*_cfg`) or a
smaller or earlier model (autoguidance, arXiv:2406.02507; recipe key `*_autoguidance`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from distill.conditions import Condition, ConditionLike
from distill.denoiser import GuidableDenoiser
from distill.errors import UserError
from distill.networks.network import Network
from distill.paths import Path
from distill.random import Random


@dataclass(frozen=True)
class GuidedDenoiser:
    """weak + scale (strong - weak), with the gradient through both; path, network and null are those of `strong`.

    Two calls, not one of a doubled batch: exact for any network, the strong estimate is bit-equal to the unguided one,
    and networks back-propagated one by one hold the activations of a single call. With a Critic's `want`, logits are
    those of the strong call, without guidance: at scale 0, of the weak one.
    """

    strong: Any
    weak: Callable[..., Any]
    scale: float

    def __call__(self, x_t: Tensor, t: Tensor, cond: ConditionLike = None, *want: str) -> Any:
        if self.scale == 0:
            return self.weak(x_t, t, cond, *want)
        strong = self.strong(x_t, t, cond, *want)
        if self.scale == 1 or "logits" in want:
            return strong
        weak = self.weak(x_t, t, cond)
        if isinstance(strong, tuple):
            return weak + self.scale * (strong[0] - weak), *strong[1:]
        return weak + self.scale * (strong - weak)

    @property
    def path(self) -> Path:
        """The path of `strong`."""
        return cast(Path, self.strong.path)

    @property
    def network(self) -> Network:
        """The network of `strong`."""
        return cast(Network, self.strong.network)

    @property
    def sigma_data(self) -> float:
        """The standard deviation of the data of `strong`."""
        return cast(float, self.strong.sigma_data)

    def null(self, cond: ConditionLike) -> Condition:
        """Return the null condition of `strong` in the form of `cond` [B, ...]."""
        return cast(Condition, self.strong.null(cond))


def classifier_free(
    denoise: Callable[..., Any], scale: float, null: Callable[[ConditionLike], Condition]
) -> GuidedDenoiser:
    """Return `denoise` guided by itself under the null condition `null(cond)`."""

    def unconditional(x_t: Tensor, t: Tensor, cond: ConditionLike = None, *want: str) -> Any:
        return denoise(x_t, t, null(cond), *want)

    return GuidedDenoiser(denoise, unconditional, scale)


def check_null(teacher: GuidableDenoiser, who: str) -> None:
    """Raise UserError, naming `who` needs it, where the teacher has no null condition."""
    if not teacher.network.has_null:
        raise UserError(
            f"objective: {who} needs a teacher with a null condition, this one states none: it must be conditional"
            " and trained with label_dropout"
        )


def drop_conditions(cond: Condition, null: Condition, probability: float, random: Random) -> Condition:
    """Return `cond` [B, ...] in which each sample has the condition of `null` with `probability`."""
    return cond.where(random.stream("condition dropout").uniform() < probability, null)
