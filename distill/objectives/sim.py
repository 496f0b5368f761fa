"""Score Implicit Matching (Luo et al., arXiv:2410.16794)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distill.compilation import fused
from distill.errors import require
from distill.loss_weights import GeneratorWeight, generator_weight
from distill.objectives.objective import Batch, Denoisers, Objective, per_sample
from distill.paths import match
from distill.random import expand
from distill.times import Karras, Times


@dataclass(frozen=True)
class Distance:
    """A distance d(y) for the difference y [B, ...] of two scores, given by its derivative d'(y) = factor(y) y."""

    def factor(self, y: Tensor) -> Tensor:
        """Return the factor, [B, 1, ...] or [B, ...], with the graph of `y` [B, ...]."""
        raise NotImplementedError


@dataclass(frozen=True)
class SquaredL2(Distance):
    """The distance |y|^2."""

    def factor(self, y: Tensor) -> Tensor:
        return torch.full_like(y, 2.0)


@dataclass(frozen=True)
class Power(Distance):
    """The distance sum y^p over elements, for even p. The largest elements dominate it.

    Attributes:
        p: The exponent, an even number.
    """

    p: int = 4

    def __post_init__(self) -> None:
        require(self.p >= 2 and self.p % 2 == 0, f"p: must be even and at least 2, got {self.p}")

    def factor(self, y: Tensor) -> Tensor:
        return self.p * y ** (self.p - 2)


@dataclass(frozen=True)
class _Threshold(Distance):
    """A distance with a threshold `c` for each element, in the unit of y.

    For N elements, |y| is compared with sqrt(N) c, so that c means the same at every resolution. A constant C for the
    whole sample is c = C / sqrt(N).

    Attributes:
        c: The threshold of an element.
    """

    # The value of consistency models (arXiv:2310.14189). It is unverified for SIM, whose training code is not public.
    c: float = 0.00054

    def __post_init__(self) -> None:
        require(self.c > 0, f"c: must be positive, got {self.c}")

    def squares(self, y: Tensor) -> tuple[Tensor, float]:
        """Return |y|^2 [B, 1, ...] and N c^2."""
        return expand(per_sample(y**2), y), self.c**2 * y[0].numel()


@dataclass(frozen=True)
class Huber(_Threshold):
    """The distance |y|^2 / 2 up to |y| = sqrt(N) c, and its tangent beyond."""

    def factor(self, y: Tensor) -> Tensor:
        square, threshold = self.squares(y)
        return (threshold / square.clamp(min=threshold)).sqrt()


@dataclass(frozen=True)
class PseudoHuber(_Threshold):
    """The distance sqrt(|y|^2 + N c^2) - sqrt(N) c, which normalises every sample."""

    def factor(self, y: Tensor) -> Tensor:
        square, threshold = self.squares(y)
        return (square + threshold).rsqrt()


@dataclass(frozen=True)
class Exponential(_Threshold):
    """The distance N c^2 exp(|y|^2 / (N c^2)). It is unstable: float32 overflows at |y| = 9.4 sqrt(N) c."""

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
"""The distances by their names in recipes."""


@fused
def sim_loss(x: Tensor, teacher: Tensor, fake: Tensor, distance: Distance, unit: Tensor) -> Tensor:
    """Return <d'(y), unit (fake - x)> with y = unit (teacher - fake).

    With unit = alpha / sigma^2 the differences are of scores, and this is the paper's <-d'(s_F - s_T), s_F - s(x_t|x)>.
    The gradient passes through x, teacher and fake, and also through the factor of d'.

    Args:
        x: Generated samples [B, ...].
        teacher: The teacher's estimate of x0 [B, ...].
        fake: The fake's estimate of x0 [B, ...].
        distance: The distance d.
        unit: The factor [B] that turns a difference of estimates into the unit of y.

    Returns:
        The loss [B].
    """
    unit = expand(unit, x)
    y = unit * (teacher - fake)
    return per_sample(distance.factor(y) * y * unit * (fake - x))


@fused
def mean_factor(teacher: Tensor, fake: Tensor, distance: Distance, unit: Tensor) -> Tensor:
    """Return the mean [B] of the factor in sim_loss on the difference of the estimates, for the arguments of it."""
    factor = distance.factor(expand(unit, teacher) * (teacher - fake))
    return unit**2 * factor.flatten(1).mean(1)


@dataclass(frozen=True, kw_only=True)
class SIM(Objective):
    """The objective of SIM, which needs no data. Its gradient passes through both denoisers.

    The default distance, pseudo-Huber, normalises samples in place of SiD's weight.

    Attributes:
        distance: The distance of the two scores.
        space: The unit of y and c.
        weight: The weight k(t) of a sample by noise level.
        times: The law of the times in the generator's loss.
    """

    distance: Distance = PseudoHuber()
    space: Literal["x0", "score"] = "x0"  # c in score space is c sigma^2 / alpha in x0
    weight: GeneratorWeight = "none"  # on top of the factors of the space; 1 in the paper's tables
    times: Times = Karras(0.002, 80.0, rho=7.0, upto=0.8)  # SiD's; unverified, the training code is not public

    differentiates_denoisers = True

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        s = self.estimate(nets, x, batch, self.times)
        nsr = nets.path.nsr(s.t)
        weight = generator_weight(self.weight, nsr)
        unit = nets.path.alpha(s.t) / nets.path.sigma(s.t) ** 2 if self.space == "score" else torch.ones_like(nsr)
        weight, unit = match(torch.stack([weight, unit]), x)
        with torch.no_grad():
            nets.note("weight", weight * mean_factor(s.teacher, s.fake, self.distance, unit), nsr)
        return {"sim": weight * sim_loss(x, s.teacher, s.fake, self.distance, unit)}
