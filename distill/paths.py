"""Gaussian paths x_t = alpha(t) x0 + sigma(t) noise, from the clean sample at t = 0 to noise.

Up to the scale alpha, a path is fixed by its noise-to-signal ratio nsr(t) = sigma(t) / alpha(t), which is EDM's sigma.
This ratio is the common coordinate of the package: the laws in distill.times draw it, and `Path.time` maps it to the
path's own t. Times, ratios and coefficients have the shape [B]. Only `Path.diffuse` and the denoiser broadcast them to
[B, 1, ...].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from distill.compilation import fused
from distill.errors import UserError
from distill.random import Random, expand, to_device

MAX_STEPS = 100_000
"""The steps of the longest grid that is read."""


class TimeLaw(Protocol):
    """The method of a law of times (distill.times) that `Path.draw` calls."""

    def nsr(self, u: Tensor, path: Path) -> Tensor:
        """Return the noise-to-signal ratio [B] at the quantiles `u` [B]."""


class Draw(NamedTuple):
    """A diffused batch: `x_t` [B, ...], its times `t` [B] on the path, and the `noise` [B, ...] in it."""

    x_t: Tensor
    t: Tensor
    noise: Tensor


@fused
def _diffused(x: Tensor, alpha: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Return alpha x + sigma noise."""
    return alpha * x + sigma * noise


@dataclass(frozen=True)
class Path:
    """A path x_t = alpha(t) x0 + sigma(t) noise. Subclasses define alpha, sigma and their derivatives in t."""

    def alpha(self, t: Tensor) -> Tensor:
        """Return the signal scale alpha [B] at the times `t` [B]."""
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        """Return the noise scale sigma [B] at the times `t` [B]."""
        raise NotImplementedError

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (d alpha/dt, d sigma/dt), [B] each, at the times `t` [B].

        The velocity of the path is u = alpha' x0 + sigma' noise.
        """
        raise NotImplementedError

    def time(self, nsr: Tensor) -> Tensor:
        """Return the times [B] at which the noise-to-signal ratio is `nsr` [B].

        A discrete path returns the time of its grid whose ratio is nearest in the logarithm.
        """
        raise NotImplementedError

    def network_time(self, t: Tensor) -> Tensor:
        """Return the number [B] that a diffusers network on this path takes as its time, for the times `t` [B]."""
        return t

    def nsr(self, t: Tensor) -> Tensor:
        """Return the noise-to-signal ratio sigma / alpha [B] at the times `t` [B]."""
        return self.sigma(t) / self.alpha(t)

    def diffuse(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return alpha(t) x + sigma(t) noise, with the graph of `x`.

        Args:
            x: Clean samples [B, ...].
            t: Times [B] on the path.
            noise: Unit normal noise [B, ...].

        Returns:
            The diffused samples [B, ...] in the dtype of `x`.
        """
        alpha, sigma = beside(x, self.alpha(t), self.sigma(t))
        return _diffused(x, alpha, sigma, noise)

    def draw(self, x: Tensor, times: TimeLaw, random: Random) -> Draw:
        """Diffuse samples at random times.

        Args:
            x: Clean samples [B, ...].
            times: The law of the times.
            random: The random numbers of the samples. Equal numbers give equal draws.

        Returns:
            The diffused samples [B, ...] with the graph of `x`, their times [B] in float64, and the noise [B, ...].
        """
        t = self.time(times.nsr(random.stream("time").uniform(), self))
        noise = random.stream("noise").normal(*x.shape[1:], dtype=x.dtype)
        return Draw(self.diffuse(x, t, noise), t, noise)


@dataclass(frozen=True)
class EDM(Path):
    """The variance-exploding path in EDM's coordinate: alpha = 1, sigma = t (Karras et al., arXiv:2206.00364)."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)

    def time(self, nsr: Tensor) -> Tensor:
        return nsr

    def network_time(self, t: Tensor) -> Tensor:
        """Return 250 ln sigma, which is 1000 c_noise.

        This is the convention of diffusers' consistency models. Exports to diffusers are therefore exact.
        """
        return 250 * t.log()


@dataclass(frozen=True)
class VP(Path):
    """The variance-preserving path in continuous time (Song et al., arXiv:2011.13456, eq. 32-33).

    t runs over [0, 1], and beta is linear in t.

    Attributes:
        beta_min: The beta at t = 0.
        beta_max: The beta at t = 1.

    Raises:
        UserError: The betas are not 0 <= beta_min <= beta_max <= 1000, or both are 0.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta_min <= self.beta_max <= 1000 or not self.beta_max:
            raise UserError(
                "beta_min and beta_max: must be 0 <= beta_min <= beta_max <= 1000 and not 0, got"
                f" {self.beta_min} and {self.beta_max}"
            )

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def alpha(self, t: Tensor) -> Tensor:
        return self._log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self._log_alpha(t))).sqrt()  # 1 - alpha^2 would lose its digits near t = 0

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.alpha(t), self.sigma(t)
        beta = self.beta_min + t * (self.beta_max - self.beta_min)
        return -0.5 * beta * alpha, 0.5 * beta * alpha**2 / sigma

    def time(self, nsr: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        level = 2 * torch.log1p(nsr**2)  # = -4 log alpha = slope t^2 + 2 beta_min t
        # The positive root of that quadratic, in the form that adds where the usual one subtracts: exact for small nsr.
        return 2 * level / (2 * self.beta_min + (4 * self.beta_min**2 + 4 * slope * level).sqrt())

    def network_time(self, t: Tensor) -> Tensor:
        """Return 999 t. Networks that were trained on 1000 steps see the times 0 to 999."""
        return 999 * t


@dataclass(frozen=True)
class DiscreteVP(Path):
    """The variance-preserving path on a grid of steps t = 0 ... steps - 1, as diffusers' DDPM schedulers define it.

    Times are indices of the grid, held as floats. A time between two indices is rounded to the nearest one.

    Attributes:
        beta_start: The first beta.
        beta_end: The last beta.
        schedule: The betas between them. "linear" (DDPM) spaces the betas evenly, and "scaled_linear" (Stable
            Diffusion) spaces their square roots evenly.
        steps: The number of steps.
        betas: All betas, each in (0, 1]. Where they are given, they replace the four settings above.
        alphas_cumprod: alpha^2 at each step, float64 [steps].

    Raises:
        UserError: The schedule is unknown, a beta lies outside (0, 1], or the steps are none or more than MAX_STEPS.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    schedule: str = "scaled_linear"
    steps: int = 1000
    betas: tuple[float, ...] = ()
    alphas_cumprod: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # A frozen dataclass sets its own fields by object.__setattr__. JSON and YAML have lists in place of tuples.
        object.__setattr__(self, "betas", tuple(self.betas))
        if not 1 <= (steps := len(self.betas) or self.steps) <= MAX_STEPS:
            raise UserError(f"steps: must be from 1 to {MAX_STEPS:,}, got {steps:,}")
        ends = self.betas or (self.beta_start, self.beta_end)
        if not all(0 < beta <= 1 for beta in ends):
            raise UserError(f"betas: must lie in (0, 1], go from {min(ends):g} to {max(ends):g}")
        if self.betas:
            betas: Tensor = torch.tensor(self.betas, dtype=torch.float64)
        elif self.schedule == "scaled_linear":
            betas = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps, dtype=torch.float64) ** 2
        elif self.schedule == "linear":
            betas = torch.linspace(self.beta_start, self.beta_end, self.steps, dtype=torch.float64)
        else:
            raise UserError(f"schedule: must be 'scaled_linear' or 'linear', got {self.schedule!r}")
        alphas_cumprod = torch.cumprod(1 - betas, 0)
        if not bool((alphas_cumprod[:-1] > 0).all()):
            raise UserError("betas: leave no signal before the last step")
        object.__setattr__(self, "alphas_cumprod", alphas_cumprod)

    def __repr__(self) -> str:
        """Return the settings in effect, in a line."""
        if self.betas:
            return f"DiscreteVP({len(self.betas):,} betas from {self.betas[0]:.3g} to {self.betas[-1]:.3g})"
        return f"DiscreteVP({self.steps:,} steps, {self.schedule} betas from {self.beta_start:g} to {self.beta_end:g})"

    def _alpha_squared(self, t: Tensor) -> Tensor:
        table = self.alphas_cumprod.to(t.device)  # times are on the host, but for those that depend on device values
        return table[t.round().long().clamp(0, len(table) - 1)]

    def alpha(self, t: Tensor) -> Tensor:
        # The promotion is for times of an integer dtype.
        return self._alpha_squared(t).sqrt().to(torch.promote_types(t.dtype, torch.float32))

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self._alpha_squared(t)).sqrt().to(torch.promote_types(t.dtype, torch.float32))

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivatives in the path's angle phi, where alpha = cos phi and sigma = sin phi.

        The grid has no derivatives in t. In this angle the velocity is diffusers' v-prediction.
        """
        return -self.sigma(t), self.alpha(t)

    def time(self, nsr: Tensor) -> Tensor:
        table = self.alphas_cumprod.to(nsr.device)
        log_nsr = 0.5 * ((1 - table) / table).log()
        middles = (log_nsr[1:] + log_nsr[:-1]) / 2
        return torch.bucketize(nsr.double().log(), middles, right=True).to(nsr.dtype)


@dataclass(frozen=True)
class ContinuousVP(Path):
    """The variance-preserving path in EDM's coordinate: sigma / alpha = t, as diffusers' `timestep_type: continuous`.

    Stable Video Diffusion (arXiv:2311.15127, appendix D.1) predicts v on it.
    """

    def alpha(self, t: Tensor) -> Tensor:
        return (1 + t**2).rsqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return (1 + t**-2).rsqrt()  # t alpha, in a form that gives 1 at t = infinity

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alpha(t)
        return -t * alpha**3, alpha**3

    def time(self, nsr: Tensor) -> Tensor:
        return nsr

    def network_time(self, t: Tensor) -> Tensor:
        """Return ln(t) / 4, which is c_noise of EDM."""
        return t.log() / 4


@dataclass(frozen=True)
class Flow(Path):
    """The path of rectified flow: alpha = 1 - t, sigma = t, velocity u = noise - x0 (Liu et al., arXiv:2209.03003)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def time(self, nsr: Tensor) -> Tensor:
        return 1 / (1 + 1 / nsr)  # nsr / (1 + nsr), in a form that gives t = 1 at nsr = infinity

    def network_time(self, t: Tensor) -> Tensor:
        """Return 1000 t, as diffusers' flow-matching schedulers do."""
        return 1000 * t


PATHS: dict[str, type[Path]] = {
    "edm": EDM,
    "vp": VP,
    "discrete_vp": DiscreteVP,
    "continuous_vp": ContinuousVP,
    "flow": Flow,
}
"""The paths by their names in recipes and in the description of a teacher."""


def ramp(u: Tensor, low: float, high: float, rho: float) -> Tensor:
    """Return the noise levels at `u` on EDM's ramp from `low` (u = 0) to `high` (u = 1).

    The ramp is linear in the power 1/rho of the noise level (arXiv:2206.00364, eq. 5).
    """
    root: Tensor = low ** (1 / rho) + u * (high ** (1 / rho) - low ** (1 / rho))
    return root.pow(rho)


def match(value: Tensor, like: Tensor) -> Tensor:
    """Return `value` on the device and, where it is a floating-point tensor, in the dtype of `like`."""
    return to_device(value, like.device, like.dtype)


def beside(like: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Return each of `values` [B] as a factor [B, 1, ...] of `like` [B, ...], on its device and in its dtype.

    Times, noise levels and all that depends on them are float64 on the host, and reach the device in one message.
    """
    rows = match(torch.stack(values), like)
    return tuple(expand(row, like) for row in rows)
