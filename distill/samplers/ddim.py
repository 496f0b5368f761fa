"""Euler's method, and DDIM: the same step, on which DDIM may add noise."""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from distill.conditions import ConditionLike
from distill.denoiser import GuidableDenoiser
from distill.errors import require
from distill.random import Random
from distill.samplers.levels import estimate_x0, pure_noise
from distill.samplers.sampler import Sampler


@dataclass(frozen=True, kw_only=True)
class Euler(Sampler):
    """Euler's method of order 1: each step keeps the estimates of x0 and of the noise (arXiv:2206.00364).

    This is the step of EDM's Euler, of DDIM without noise, and of the Euler of flow matching alike. They differ in the
    noise levels that they visit.
    """

    @property
    def added_noise(self) -> float:
        """The share of the noise of a step that is new."""
        return 0.0

    def solve(self, denoiser: GuidableDenoiser, z: Tensor, cond: ConditionLike, random: Random | None) -> Tensor:
        levels = self.distinct_levels(denoiser.path) if self.stochastic else self.levels(denoiser.path)
        x = pure_noise(levels, z)
        for index, (here, there) in enumerate(pairwise(levels.nsr)):
            x0 = estimate_x0(denoiser, levels, index, x, cond)
            if there == 0:
                return x0
            # alpha and sigma of the variance-preserving coordinate, finite at every level.
            angle, goal = here.atan(), there.atan()
            noise = (x - angle.cos() * x0) / angle.sin()
            # DDIM's variance (arXiv:2010.02502, eq. 16), in ratios.
            new = self.added_noise * there * (1 - (there / here) ** 2).clamp(min=0).sqrt()
            x = goal.cos() * (x0 + (there**2 - new**2).sqrt() * noise)
            if random is not None and self.added_noise:
                fresh = random.stream(f"step {index}").normal(*x.shape[1:], dtype=x.dtype)
                x = x + goal.cos() * new * fresh
        return x0


@dataclass(frozen=True, kw_only=True)
class DDIM(Euler):
    """Denoising diffusion implicit models (Song et al., arXiv:2010.02502). Order 1.

    Attributes:
        eta: The noise that each step adds: none at 0, and that of DDPM's ancestral sampling at 1.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.eta <= 1, f"eta: must be between 0 and 1, got {self.eta}")

    @property
    def stochastic(self) -> bool:
        """Whether it adds noise."""
        return self.eta > 0

    @property
    def added_noise(self) -> float:
        """The share of the noise of a step that is new."""
        return self.eta
