"""Guidance: a denoiser whose estimate D is moved away from the estimate of a weaker denoiser.

The code and the recipes have one convention for the scale:

    D_weak + scale (D - D_weak)

Scale 1 is no guidance, scale 0 is the weak denoiser alone, and negative scales point away from D. The weak denoiser is

- D under the null condition, in classifier-free guidance (arXiv:2207.12598, recipe keys `*_cfg`). The weight in that
  paper is scale - 1.
- a smaller or earlier model, in autoguidance (arXiv:2406.02507, recipe key `*_autoguidance`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from distill.conditions import Condition, ConditionLike
from distill.denoiser import GuidableDenoiser
from distill.errors import UserError
from distill.networks.network import Network
from distill.paths import Path
from distill.random import Random


@dataclass(frozen=True)
class GuidedDenoiser:
    """The denoiser weak + scale (strong - weak), with the gradient through both.

    It calls `strong` and `weak` one after the other, each on the batch as it is (compare InOnePass).

    Attributes:
        strong: The denoiser that is guided. Path, network and null condition are its own.
        weak: The denoiser that it is moved away from.
        scale: The scale of the guidance.
    """

    strong: Any
    weak: Callable[..., Any]
    scale: float

    def __call__(self, x_t: Tensor, t: Tensor, cond: ConditionLike = None, *want: Any) -> Any:
        """Return the guided estimate [B, ...] of x0.

        `want` is that of a Critic, and the denoiser whose features it reads. Logits and uncertainty are not guided:
        they are those of `strong`, or those of `weak` at scale 0.
        """
        if self.scale == 0:
            return self.weak(x_t, t, cond, *want)
        strong = self.strong(x_t, t, cond, *want)
        if self.scale == 1 or "logits" in want or "uncertainty" in want:
            return strong
        weak = self.weak(x_t, t, cond)
        if isinstance(strong, tuple):
            return weak + self.scale * (strong[0] - weak), *strong[1:]
        return weak + self.scale * (strong - weak)

    def features(self, x_t: Tensor, t: Tensor, cond: ConditionLike, *taps: str) -> tuple[Tensor, ...]:
        """Return the features of `strong`, which are not guided (see Denoiser.features)."""
        return cast(tuple[Tensor, ...], self.strong.features(x_t, t, cond, *taps))

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
        """Return the null condition of `strong` for every sample of `cond` [B, ...]."""
        return cast(Condition, self.strong.null(cond))


@dataclass(frozen=True)
class InOnePass(GuidedDenoiser):
    """Classifier-free guidance by one pass over a doubled batch, in place of two passes.

    It launches half as many kernels, and a graph holds the activations of both halves at once. A network's estimate of
    a sample depends on the size of the batch in its last digits alone.

    Attributes:
        unconditional: A function from a condition [B, ...] to the null condition of every sample.
    """

    unconditional: Callable[[ConditionLike], Condition]

    def __call__(self, x_t: Tensor, t: Tensor, cond: ConditionLike = None, *want: Any) -> Any:
        if self.scale in (0, 1) or want:
            return super().__call__(x_t, t, cond, *want)
        both = Condition.of(cond).cat(self.unconditional(cond))
        strong, weak = self.strong(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        return weak + self.scale * (strong - weak)


def classifier_free(
    denoise: Callable[..., Any],
    scale: float,
    null: Callable[[ConditionLike], Condition],
    in_one_pass: bool = False,
) -> GuidedDenoiser:
    """Return a denoiser under classifier-free guidance.

    Args:
        denoise: The denoiser.
        scale: The scale of the guidance. 1 is no guidance.
        null: A function from a condition [B, ...] to the null condition of every sample, such as `Denoiser.null`.
        in_one_pass: Whether conditional and unconditional estimates come from one pass over a doubled batch.
    """

    def unconditional(x_t: Tensor, t: Tensor, cond: ConditionLike = None, *want: str) -> Any:
        return denoise(x_t, t, null(cond), *want)

    guided = GuidedDenoiser(denoise, unconditional, scale)
    return InOnePass(denoise, unconditional, scale, null) if in_one_pass else guided


def check_null(teacher: GuidableDenoiser, who: str) -> None:
    """Raise UserError when the teacher has no null condition. The message names `who` needs one."""
    if not teacher.network.has_null:
        raise UserError(
            f"objective: {who} needs a teacher with a null condition, this one states none: it must be conditional"
            " and trained with label_dropout"
        )


def drop_conditions(cond: Condition, null: Condition, probability: float, random: Random) -> Condition:
    """Return `cond` [B, ...] with the condition of each sample replaced by that of `null` with `probability`."""
    return cond.where(random.stream("condition dropout").uniform() < probability, null)
