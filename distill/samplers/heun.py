"""Heun's method on the probability flow ODE (Karras et al., arXiv:2206.00364, algorithm 1 without churn)."""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from distill.conditions import ConditionLike
from distill.denoiser import GuidableDenoiser
from distill.paths import beside
from distill.random import Random
from distill.samplers.sampler import Sampler


@dataclass(frozen=True, kw_only=True)
class Heun(Sampler):
    """Heun's method of order 2, EDM's sampler.

    Each step takes two evaluations. The last one, to the ratio 0, is Euler's and takes one. At an even number of
    evaluations the step before it is Euler's too.
    """

    from_pure_noise = False

    @property
    def calls(self) -> int:
        """The number of network evaluations of a sample, without those of guidance."""
        return 2 * len(self.times) - 1 if self.times else self.evaluations

    @property
    def level_count(self) -> int:
        """The number of noise levels above 0 that it visits."""
        return len(self.times) or self.evaluations // 2 + 1

    def solve(self, denoiser: GuidableDenoiser, z: Tensor, cond: ConditionLike, random: Random | None) -> Tensor:
        levels = self.levels(denoiser.path)
        path, (first, *_) = levels.path, levels.nsr
        odd = bool(self.times) or self.evaluations % 2
        eulers = 1 if odd else 2  # the last steps, which are Euler's

        def slope(x: Tensor, index: int) -> Tensor:
            """Return the derivative of x = x_t / alpha in the noise-to-signal ratio, at a level."""
            t = levels.time(index, x)
            x0: Tensor = denoiser(beside(x, path.alpha(t))[0] * x, t, cond)
            return (x - x0) / levels.nsr[index]

        x: Tensor = first * z
        for index, (here, there) in enumerate(pairwise(levels.nsr)):
            start = slope(x, index)
            step = there - here
            if index >= len(levels.times) - eulers:
                x = x + start * step
            else:
                x = x + (start + slope(x + start * step, index + 1)) / 2 * step
        return x
