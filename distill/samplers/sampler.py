"""The contract of a sampler: a frozen dataclass whose fields are its settings.

In the coordinate x_t / alpha, with the noise-to-signal ratio as its time, every Gaussian path becomes EDM's and every
probability flow ODE becomes the same curve. One implementation of a sampler therefore serves all paths. Where the
coordinate would be infinite, at pure noise, the samplers divide x_t by sqrt(alpha^2 + sigma^2) instead.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distill.conditions import ConditionLike
from distill.denoiser import GuidableDenoiser
from distill.errors import UserError, require
from distill.paths import Flow, Path
from distill.random import Random
from distill.samplers.levels import Levels, apart, log_levels, ramp_levels, uniform_levels
from distill.samplers.sampler_guidance import Guidance


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A method that turns noise into samples by several evaluations of a denoiser.

    Attributes:
        evaluations: The number of network evaluations of a sample. Guidance doubles each, where it is at work.
        spacing: The noise levels. `ramp` is EDM's ramp (arXiv:2206.00364, eq. 5), and `log_snr` has equal distances in
            the logarithm of the noise-to-signal ratio. `uniform` has equal distances in the path's own time, from pure
            noise, on a flow, a grid of steps, or vp.
        low: The smallest noise-to-signal ratio above 0 of `ramp` and `log_snr`.
        high: The largest one. A discrete path limits both to its own range.
        rho: The exponent of `ramp`.
        shift: The factor on the ratios of `uniform` on a flow.
        times: The times on the teacher's path to visit, from noise on, in place of the five settings above. The sampler
            then takes one evaluation at each, and Heun's method two.
        guidance: The guidance of the teacher while it is sampled. None for that of the run's objective, if it has any.

    Raises:
        UserError: A setting is out of its range, or settings do not go together.
    """

    evaluations: int = 35
    spacing: Literal["ramp", "log_snr", "uniform"] = "ramp"
    low: float = 0.002
    high: float = 80.0
    rho: float = 7.0
    shift: float = 1.0
    times: tuple[float, ...] = ()
    guidance: Guidance | None = None

    from_pure_noise = True
    """Whether it can start where no signal is left."""

    def __post_init__(self) -> None:
        require(self.evaluations >= 1, f"evaluations: must be at least 1, got {self.evaluations}")
        require(0 < self.low < self.high, f"low, high: must satisfy 0 < low < high, got {self.low} and {self.high}")
        require(self.rho > 0, f"rho: must be positive, got {self.rho}")
        require(self.shift > 0, f"shift: must be positive, got {self.shift}")
        if self.shift != 1 and self.spacing != "uniform":
            raise UserError(f"shift: goes with spacing: uniform alone, got spacing: {self.spacing}")
        if self.times and (self.spacing != "ramp" or self.shift != 1):
            raise UserError("times: stand in place of spacing and shift; leave those out")
        if any(later >= earlier for earlier, later in zip(self.times, self.times[1:], strict=False)):
            raise UserError(f"times: must fall from noise to the sample, got {list(self.times)!s:.200}")

    @property
    def stochastic(self) -> bool:
        """Whether it adds noise on its way, so that equal starts of two samples do not mean equal samples."""
        return False

    @property
    def calls(self) -> int:
        """The number of network evaluations of a sample, without those of guidance."""
        return self.level_count

    @property
    def level_count(self) -> int:
        """The number of noise levels above 0 that it visits."""
        return len(self.times) or self.evaluations

    def check(self, path: Path) -> None:
        """Raise UserError when the sampler has no meaning on `path`."""
        if self.shift != 1 and not isinstance(path, Flow):
            raise UserError(f"sampler.shift: needs a flow, the teacher's path is {path!s:.80}")
        levels = self.levels(path)
        if not self.from_pure_noise and not bool(levels.nsr[0].isfinite()):
            raise UserError(
                f"sampler: {type(self).__name__} cannot start where no signal is left; take spacing: ramp or another"
                " sampler"
            )
        finite = levels.nsr[levels.nsr.isfinite()]
        if not bool((levels.times.isfinite() & levels.nsr[:-1].gt(0)).all()) or not bool((finite.diff() <= 0).all()):
            raise UserError(f"sampler.times: {list(self.times)!s:.200} do not lie on the teacher's path {path!s:.80}")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise UserError when the sampler has no meaning for samples of `shape`."""

    def levels(self, path: Path) -> Levels:
        """Return the noise levels that the sampler visits on a path.

        Raises:
            UserError: The path has no such levels.
        """
        if self.times:
            times = torch.tensor(self.times, dtype=torch.float64)
        elif self.spacing == "ramp":
            times = ramp_levels(path, self.level_count, self.low, self.high, self.rho)
        elif self.spacing == "log_snr":
            times = log_levels(path, self.level_count, self.low, self.high)
        else:
            times = uniform_levels(path, self.level_count, self.shift)
        return Levels.at(path, times)

    def distinct_levels(self, path: Path) -> Levels:
        """Return the noise levels with none twice, for methods that divide by their distances."""
        return Levels.at(path, apart(path, self.levels(path).times))

    @torch.no_grad()
    def sample(
        self, denoiser: GuidableDenoiser, z: Tensor, cond: ConditionLike = None, random: Random | None = None
    ) -> Tensor:
        """Draw samples.

        Args:
            denoiser: The denoiser, guided or not.
            z: Unit normal noise [B, ...], the start.
            cond: The condition [B, ...], or None for an unconditional denoiser.
            random: The random numbers of a stochastic sampler. None for numbers that are a function of `z`. Either way
                a sample does not depend on the others of its batch.

        Returns:
            Samples [B, ...] without a graph.

        Raises:
            UserError: The sampler has no meaning on the denoiser's path.
        """
        self.check(denoiser.path)
        return self.solve(denoiser, z, cond, Random.of(z) if random is None and self.stochastic else random)

    def solve(self, denoiser: GuidableDenoiser, z: Tensor, cond: ConditionLike, random: Random | None) -> Tensor:
        """Return samples [B, ...] from noise `z` [B, ...]. Arguments are those of `sample`, which has checked them.

        Args:
            denoiser: The denoiser.
            z: Unit normal noise.
            cond: The condition.
            random: The random numbers. They are None only where `stochastic` is false.
        """
        raise NotImplementedError
