"""Guidance while a teacher is sampled: constant, in an interval of noise levels, rescaled, or by a weak teacher."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from distill.annotations import LocalPath
from distill.conditions import ConditionLike
from distill.denoiser import Denoiser, GuidableDenoiser
from distill.errors import UserError, require
from distill.guidance import GuidedDenoiser, classifier_free
from distill.paths import match
from distill.prediction import Kind, from_x0
from distill.random import expand


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """The guidance of a teacher that is sampled. Scales have the convention of `distill.guidance`.

    The negative prompt of a teacher of prompts is the run's `negative_prompt`, since it is the null condition.

    Attributes:
        cfg: The scale of classifier-free guidance. 1 is no guidance.
        autoguidance: The scale of autoguidance by `weak_teacher`, in place of `cfg` (arXiv:2406.02507).
        weak_teacher: The folder of the weak teacher, which gets the same condition.
        interval: The noise-to-signal ratios (low, high] at which guidance is at work. Elsewhere the teacher is asked
            alone, which is cheaper (arXiv:2404.07724). None for all of them.
        rescale: The share phi, from 0 to 1, at which the standard deviation of each guided output becomes that of the
            output without guidance (arXiv:2305.08891, section 3.4). The output is what the network predicts.

    Raises:
        UserError: A setting is out of its range, or settings do not go together.
    """

    cfg: float | None = None
    autoguidance: float | None = None
    weak_teacher: LocalPath | None = None
    interval: tuple[float, float] | None = None
    rescale: float = 0.0

    def __post_init__(self) -> None:
        if (self.cfg is None) == (self.autoguidance is None):
            given = "neither" if self.cfg is None else "both"
            raise UserError(f"guidance: one of cfg and autoguidance is the scale, got {given}")
        if (self.autoguidance is None) != (self.weak_teacher is None):
            raise UserError("guidance: autoguidance and weak_teacher go together, got one of them")
        require(0 <= self.rescale <= 1, f"rescale: must be between 0 and 1, got {self.rescale}")
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1]:
            raise UserError(f"interval: must be two ratios, 0 <= low < high, got {list(self.interval)}")

    @property
    def scale(self) -> float:
        """The scale of the guidance."""
        return cast(float, self.autoguidance if self.cfg is None else self.cfg)

    def check(self, teacher: Denoiser) -> None:
        """Raise UserError when a teacher cannot be guided so."""
        if self.cfg not in (None, 1) and not teacher.network.has_null:
            raise UserError(
                "sampler.guidance.cfg: the teacher states no null condition: it must be conditional and trained with"
                " label_dropout; take autoguidance by a weak teacher, or leave guidance out"
            )

    def check_weak(self, weak: Denoiser, teacher: Denoiser) -> None:
        """Raise UserError when the weak teacher does not fit the teacher."""
        for what, theirs, ours in (
            ("path", weak.path, teacher.path),
            ("shape", weak.network.shape, teacher.network.shape),
            ("classes", weak.network.classes, teacher.network.classes),
        ):
            if theirs != ours:
                raise UserError(
                    f"sampler.guidance.weak_teacher: '{self.weak_teacher}' has {what} {theirs}, the teacher {ours}"
                )

    def guide(self, teacher: GuidableDenoiser, weak: GuidableDenoiser | None = None) -> "SampledGuidance":
        """Return a teacher under this guidance.

        Args:
            teacher: The teacher.
            weak: The weak teacher of `weak_teacher`.
        """
        kind = cast(Kind, getattr(teacher, "prediction", "x0"))
        if self.cfg is not None:
            plain = classifier_free(teacher, self.cfg, teacher.null)
            return SampledGuidance(plain.strong, plain.weak, self.cfg, self.interval, self.rescale, kind)
        assert weak is not None, "autoguidance needs the weak teacher"
        return SampledGuidance(teacher, weak, self.scale, self.interval, self.rescale, kind)


@dataclass(frozen=True)
class SampledGuidance(GuidedDenoiser):
    """A guided denoiser for sampling.

    Attributes:
        interval: The noise-to-signal ratios (low, high] at which it guides. None for all.
        rescale: The share of the rescaled output.
        prediction: The quantity whose standard deviation is kept.
    """

    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    prediction: Kind = "x0"

    def __call__(self, x_t: Tensor, t: Tensor, cond: ConditionLike = None, *want: str) -> Any:
        """Return the guided estimate [B, ...] of x0. `want` must be empty."""
        inside = self._inside(t)
        if not bool(inside.any()):
            return self.strong(x_t, t, cond, *want)
        if not self.rescale:
            guided = super().__call__(x_t, t, cond, *want)
            return guided if bool(inside.all()) else self._only(inside, guided, x_t, t, cond)
        strong = self.strong(x_t, t, cond, *want)
        if self.scale == 1:
            return strong
        weak = self.weak(x_t, t, cond)
        guided = self._rescaled(weak + self.scale * (strong - weak), strong, x_t, t)
        return guided if bool(inside.all()) else torch.where(expand(match(inside, guided), guided), guided, strong)

    def _inside(self, t: Tensor) -> Tensor:
        """Return whether each time of `t` [B] is one of the interval, bool [B]."""
        if self.interval is None:
            return torch.ones_like(t, dtype=torch.bool)
        nsr = self.path.nsr(t)
        return (nsr > self.interval[0]) & (nsr <= self.interval[1])

    def _only(self, inside: Tensor, guided: Tensor, x_t: Tensor, t: Tensor, cond: ConditionLike) -> Tensor:
        """Return the guided estimates of the samples `inside` [B], and the plain ones of the others."""
        return torch.where(expand(match(inside, guided), guided), guided, self.strong(x_t, t, cond))

    def _rescaled(self, guided: Tensor, strong: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the guided estimate [B, ...] of x0, its output with the standard deviation of the strong one."""
        outputs = [from_x0(self.prediction, self.path, x0, x_t, t, self.sigma_data) for x0 in (guided, strong)]
        std, wanted = (one.flatten(1).std(1).clamp(min=1e-12) for one in outputs)
        factor = expand(self.rescale * wanted / std + 1 - self.rescale, guided)
        change = (factor - 1) * outputs[0]
        # x0 is affine in the output: a change of the output is one of x0, by the same factor everywhere.
        slope = from_x0(self.prediction, self.path, torch.ones_like(guided), torch.zeros_like(x_t), t, self.sigma_data)
        return guided + change / slope
