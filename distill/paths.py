"""Gaussian paths x_t = alpha(t) x0 + sigma(t) noise, from clean (t = 0) to noise.

Up to the scale alpha every such path is fixed by its noise-to-signal ratio nsr(t) = sigma/alpha (EDM's sigma), the
common coordinate of this package: times are drawn in it, and `time` maps it back to the path's own t.
Times, ratios and coefficients are [B]; only `draw` and the denoiser broadcast them to [B, 1, ...].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from distill.errors import UserError
from distill.random import Random, expand


class TimeLaw(Protocol):
    """The part of a law of times (distill.times) that a path asks."""

    def nsr(self, u: Tensor, path: Path) -> Tensor:
        """Return the noise-to-signal ratio [B] at the quantiles `u` [B]."""


class Draw(NamedTuple):
    """A diffused batch: `x_t` [B, ...], its time `t` [B] on the path, and the `noise` [B, ...] that was added."""

    x_t: Tensor
    t: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Path:
    """x_t = alpha(t) x0 + sigma(t) noise; subclasses give the schedule and its derivatives in t."""

    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale at `t` [B]."""
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale at `t` [B]."""
        raise NotImplementedError

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha/dt, d sigma/dt) at `t` [B]: the velocity is u = alpha' x0 + sigma' noise."""
        raise NotImplementedError

    def time(self, nsr: Tensor) -> Tensor:
        """The t [B] whose noise-to-signal ratio is `nsr` [B]; on a discrete path the nearest grid time."""
        raise NotImplementedError

    def network_time(self, t: Tensor) -> Tensor:
        """The number a diffusers network of this path is conditioned on."""
        return t

    def nsr(self, t: Tensor) -> Tensor:
        """Noise-to-signal ratio sigma/alpha at `t` [B]."""
        return self.sigma(t) / self.alpha(t)

    def diffuse(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """alpha(t) x + sigma(t) noise, [B, ...], keeping the graph of x."""
        return expand(self.alpha(t), x).to(x.dtype) * x + expand(self.sigma(t), x).to(x.dtype) * noise

    def draw(self, x: Tensor, times: TimeLaw, random: Random) -> Draw:
        """Diffuse `x` [B, ...] at times of the law `times`; a function of its arguments. t is float64."""
        t = self.time(times.nsr(random.stream("time").uniform(), self))
        noise = random.stream("noise").normal(*x.shape[1:], dtype=x.dtype)
        return Draw(self.diffuse(x, t, noise), t, noise)


@dataclass(frozen=True)
class EDM(Path):
    """Variance exploding in EDM's coordinate: alpha = 1, sigma = t (Karras et al., arXiv:2206.00364)."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)

    def time(self, nsr: Tensor) -> Tensor:
        return nsr

    def network_time(self, t: Tensor) -> Tensor:
        """250 ln sigma = 1000 c_noise, the convention of diffusers' consistency models, so that exports are exact."""
        return 250 * t.log()


@dataclass(frozen=True)
class VP(Path):
    """Continuous variance preserving: beta linear in t in [0, 1] (Song et al., arXiv:2011.13456, eq. 32-33)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def alpha(self, t: Tensor) -> Tensor:
        return self._log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self._log_alpha(t))).sqrt()

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.alpha(t), self.sigma(t)
        beta = self.beta_min + t * (self.beta_max - self.beta_min)
        return -0.5 * beta * alpha, 0.5 * beta * alpha**2 / sigma

    def time(self, nsr: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        level = 2 * torch.log1p(nsr**2)  # = -4 log alpha = slope t^2 + 2 beta_min t
        return 2 * level / (2 * self.beta_min + (4 * self.beta_min**2 + 4 * slope * level).sqrt())

    def network_time(self, t: Tensor) -> Tensor:
        """999 t: networks trained on 1000 steps see 0 to 999."""
        return 999 * t


@dataclass(frozen=True)
class DiscreteVP(Path):
    """Variance preserving on a grid of steps t = 0 ... steps-1, as diffusers' DDPM schedulers define it.

    `schedule` is "scaled_linear" (Stable Diffusion: beta linear in its square root) or "linear" (DDPM), or `betas`
    gives the grid itself. Times are grid indices held as floats; between them the schedule is read at the nearest.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    schedule: str = "scaled_linear"
    steps: int = 1000
    betas: tuple[float, ...] = ()
    alphas_cumprod: Tensor = field(init=False, repr=False, compare=False, metadata={"derived": True})

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))  # JSON and YAML know lists only
        if self.betas:
            betas: Tensor = torch.tensor(self.betas, dtype=torch.float64)
        elif self.schedule == "scaled_linear":
            betas = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps, dtype=torch.float64) ** 2
        elif self.schedule == "linear":
            betas = torch.linspace(self.beta_start, self.beta_end, self.steps, dtype=torch.float64)
        else:
            raise UserError(f"schedule: must be 'scaled_linear' or 'linear', got {self.schedule!r}")
        if not bool(((betas > 0) & (betas <= 1)).all()):
            raise UserError(f"betas: must lie in (0, 1], go from {float(betas.min()):g} to {float(betas.max()):g}")
        object.__setattr__(self, "alphas_cumprod", torch.cumprod(1 - betas, 0))

    def _table(self, device: torch.device) -> Tensor:
        if self.alphas_cumprod.device != device:  # moved with its first use there, not copied with each
            object.__setattr__(self, "alphas_cumprod", self.alphas_cumprod.to(device))
        return self.alphas_cumprod

    def _signal(self, t: Tensor) -> Tensor:
        table = self._table(t.device)
        return table[t.round().long().clamp(0, len(table) - 1)]

    def alpha(self, t: Tensor) -> Tensor:
        return self._signal(t).sqrt().to(torch.promote_types(t.dtype, torch.float32))  # t may be whole numbers

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self._signal(t)).sqrt().to(torch.promote_types(t.dtype, torch.float32))

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """In the angle of the path, d/dphi with alpha = cos phi: the velocity is then diffusers' v-prediction."""
        return -self.sigma(t), self.alpha(t)

    def time(self, nsr: Tensor) -> Tensor:
        table = self._table(nsr.device)
        levels = 0.5 * ((1 - table) / table).log()
        middles = (levels[1:] + levels[:-1]) / 2
        return torch.bucketize(nsr.double().log(), middles, right=True).to(nsr.dtype)


@dataclass(frozen=True)
class Flow(Path):
    """Rectified flow: alpha = 1 - t, sigma = t, velocity u = noise - x0 (Liu et al., arXiv:2209.03003)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def time(self, nsr: Tensor) -> Tensor:
        return 1 / (1 + 1 / nsr)  # exact at nsr = infinity, where t = 1

    def network_time(self, t: Tensor) -> Tensor:
        """1000 t, as diffusers' flow-matching schedulers hand it over."""
        return 1000 * t


PATHS: dict[str, type[Path]] = {"edm": EDM, "vp": VP, "discrete_vp": DiscreteVP, "flow": Flow}


def ramp(u: Tensor, low: float, high: float, rho: float) -> Tensor:
    """EDM's ramp of noise levels from `low` (u = 0) to `high` (u = 1), straight in the power 1/rho (eq. 5)."""
    root: Tensor = low ** (1 / rho) + u * (high ** (1 / rho) - low ** (1 / rho))
    return root.pow(rho)
