"""Score Implicit Matching (Luo et al., arXiv:2410.16794)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distill.errors import UserError
from distill.loss_weights import GeneratorWeight, generator_weight
from distill.objectives.objective import Batch, Denoisers, Objective, per_sample
from distill.random import expand
from distill.times import Karras, Times


@dataclass(frozen=True)
class Distance:
    """A distance d(y) of the difference y [B, ...] of two scores, given by its derivative d'(y) = factor(y) y."""

    def factor(self, y: Tensor) -> Tensor:
        """[B, 1, ...] or [B, ...], carrying the graph of y."""
        raise NotImplementedError


@dataclass(frozen=True)
class SquaredL2(Distance):
    """|y|^2."""

    def factor(self, y: Tensor) -> Tensor:
        return torch.full_like(y, 2.0)


@dataclass(frozen=True)
class Power(Distance):
    """The sum over elements of y^p, p even: the largest elements dominate."""

    p: int = 4

    def __post_init__(self) -> None:
        if self.p < 2 or self.p % 2:
            raise UserError(f"p: must be even and at least 2, got {self.p}")

    def factor(self, y: Tensor) -> Tensor:
        return self.p * y ** (self.p - 2)


@dataclass(frozen=True)
class _Threshold(Distance):
    """With a threshold `c` per element, in the unit of y: of N elements, |y| is compared with sqrt(N) c, which means
    the same at every resolution. A constant C for the whole sample is c = C / sqrt(N)."""

    c: float = (
        0.00054  # of consistency models (arXiv:2310.14189); unverified for SIM, whose training code is not public
    )

    def __post_init__(self) -> None:
        if not self.c > 0:
            raise UserError(f"c: must be positive, got {self.c}")

    def squares(self, y: Tensor) -> tuple[Tensor, float]:
        """|y|^2 [B, 1, ...] and N c^2."""
        return expand(per_sample(y**2), y), self.c**2 * y[0].numel()


@dataclass(frozen=True)
class Huber(_Threshold):
    """|y|^2 / 2 up to |y| = sqrt(N) c, straight beyond."""

    def factor(self, y: Tensor) -> Tensor:
        square, threshold = self.squares(y)
        return (threshold / square.clamp(min=threshold)).sqrt()


@dataclass(frozen=True)
class PseudoHuber(_Threshold):
    """sqrt(|y|^2 + N c^2) - sqrt(N) c: it normalises every sample."""

    def factor(self, y: Tensor) -> Tensor:
        square, threshold = self.squares(y)
        return (square + threshold).rsqrt()


@dataclass(frozen=True)
class Exponential(_Threshold):
    """N c^2 exp(|y|^2 / N c^2), exp(|y|^2) where N c^2 = 1. Unstable: float32 ends at |y| = 9.4 sqrt(N) c."""

    c: float = 1.0

    def factor(self, y: Tensor) -> Tensor:
        square, threshold = self.squares(y)
        return 2 * (square / threshold).exp()


DISTANCES: dict[str, type[Distance]] = {
    "squared_l2": SquaredL2,
    "huber": Huber,
    "pseudo_huber": PseudoHuber,
    "power": Power,
    "exponential": Exponential,
}


def sim_loss(x: Tensor, teacher: Tensor, fake: Tensor, distance: Distance, unit: Tensor) -> Tensor:
    """<d'(y), unit (fake - x)> [B] with y = unit (teacher - fake), all [B, ...] but `unit` [B].

    With unit = alpha/sigma^2 these are scores, and this is the paper's <-d'(s_F - s_T), s_F - s(x_t|x)>. The gradient
    passes through all three and through d', whose root is no constant.
    """
    unit = expand(unit, x).to(x.dtype)
    y = unit * (teacher - fake)
    return per_sample(distance.factor(y) * y * unit * (fake - x))


@dataclass(frozen=True, kw_only=True)
class SIM(Objective):
    """Data-free; the gradient passes through both denoisers. Pseudo-Huber stands in for SiD's normaliser."""

    distance: Distance = PseudoHuber()
    space: Literal["x0", "score"] = "x0"  # of y and so of c: c in score space is c sigma^2/alpha in x0
    weight: GeneratorWeight = "none"  # k(t), beyond what the space brings; 1 in the paper's tables
    times: Times = Karras(0.002, 80.0, rho=7.0, upto=0.8)  # SiD's; unverified, the training code is not public

    differentiates_denoisers = True

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        s = self.estimate(nets, x, batch, self.times)
        nsr = nets.path.nsr(s.t)
        weight = generator_weight(self.weight, nsr)
        unit = nets.path.alpha(s.t) / nets.path.sigma(s.t) ** 2 if self.space == "score" else torch.ones_like(nsr)
        with torch.no_grad():
            factor = self.distance.factor(expand(unit, x).to(x.dtype) * (s.teacher - s.fake))
            nets.note("weight", weight * unit**2 * factor.flatten(1).mean(1), nsr)
        return {"sim": weight.to(x.dtype) * sim_loss(x, s.teacher, s.fake, self.distance, unit)}
