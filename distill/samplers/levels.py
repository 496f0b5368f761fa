"""The noise levels that a sampler visits, from noise to the clean sample."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.denoiser import GuidableDenoiser
from distill.errors import UserError
from distill.paths import VP, DiscreteVP, Flow, Path

PURE_NOISE = 1e6
"""The ratio that stands for that of pure noise in the coefficients of multi-step methods, which divide by alpha."""


@dataclass(frozen=True)
class Levels:
    """The times on a path at which a sampler asks for estimates, and their noise levels.

    Attributes:
        path: The path.
        times: The times [N] on the path, float64, from noise to the clean sample.
        nsr: The noise-to-signal ratios [N + 1], float64, the last of which is 0. The first may be infinite.
    """

    path: Path
    times: Tensor
    nsr: Tensor

    @classmethod
    def at(cls, path: Path, times: Tensor) -> "Levels":
        """Return the levels of `times` [N] on a path."""
        return cls(path, times, torch.cat([path.nsr(times), torch.zeros(1, dtype=torch.float64)]))

    def time(self, index: int, z: Tensor) -> Tensor:
        """Return the time with the number `index` for each sample of `z` [B, ...], float64 [B] on the host."""
        return torch.full((len(z),), float(self.times[index]), dtype=torch.float64)


def ramp_levels(path: Path, count: int, low: float, high: float, rho: float) -> Tensor:
    """Return `count` times on EDM's ramp from the ratio `high` to `low` (arXiv:2206.00364, eq. 5), float64.

    A discrete path limits the ramp to its own range, and takes the nearest levels of its grid.
    """
    first, last = _ends(path, low, high)
    root = first ** (1 / rho) + np.linspace(0, 1, count) * (last ** (1 / rho) - first ** (1 / rho))
    # In float32, as in the schedulers of diffusers.
    return path.time(torch.from_numpy((root**rho).astype(np.float32)).double())


def log_levels(path: Path, count: int, low: float, high: float) -> Tensor:
    """Return `count` times at equal distances in the logarithm of the ratio, from `high` to `low`, float64."""
    first, last = _ends(path, low, high)
    return path.time(torch.from_numpy(np.geomspace(first, last, count)))


def uniform_levels(path: Path, count: int, shift: float) -> Tensor:
    """Return `count` times at equal distances in the path's own time, from pure noise, float64.

    On a grid of steps this is diffusers' spacing "trailing" (arXiv:2305.08891). On a flow the ratios are multiplied by
    `shift`, as SD3 does (arXiv:2403.03206, section 5.3.2).

    Raises:
        UserError: The time of the path has no end.
    """
    if isinstance(path, DiscreteVP):
        steps = len(path.alphas_cumprod)
        return torch.from_numpy(np.arange(steps, 0, -steps / count).round()[:count] - 1.0)
    if not isinstance(path, Flow | VP):
        raise UserError(
            "spacing: uniform needs a path whose time has an end (flow, vp, discrete_vp), the teacher's is"
            f" {path!s:.80}; take ramp or log_snr"
        )
    times = 1 - torch.arange(count, dtype=torch.float64) / count
    return shift * times / (1 + (shift - 1) * times) if isinstance(path, Flow) else times


def apart(path: Path, times: Tensor) -> Tensor:
    """Return the times [N] of a grid of steps with no step twice: those that share one move to free neighbours.

    Raises:
        UserError: The grid has fewer than N steps.
    """
    if not isinstance(path, DiscreteVP):
        return times
    steps, count = len(path.alphas_cumprod), len(times)
    if count > steps:
        raise UserError(f"evaluations: the teacher's path has {steps} steps, got {count} levels")
    index = times.round().long().tolist()
    for i in reversed(range(count - 1)):
        index[i] = max(index[i], index[i + 1] + 1)
    for i in range(count):
        index[i] = min(index[i], steps - 1 - i if i == 0 else index[i - 1] - 1)
    return torch.tensor(index, dtype=torch.float64)


def pure_noise(levels: Levels, z: Tensor) -> Tensor:
    """Return noise [B, ...] as the sample x_t / sqrt(alpha^2 + sigma^2) of the first level."""
    first = float(levels.nsr[0])
    return z if first == float("inf") else z * (first / (1 + first**2) ** 0.5)


def estimate_x0(denoiser: GuidableDenoiser, levels: Levels, index: int, x: Tensor, cond: object) -> Tensor:
    """Return the estimate of x0 [B, ...] for samples `x` [B, ...] at a level.

    Args:
        denoiser: The denoiser.
        levels: The levels.
        index: The number of the level.
        x: Samples x_t / sqrt(alpha^2 + sigma^2). This is x_t itself on variance-preserving paths, and has a finite
            scale at every noise level.
        cond: The condition.
    """
    path, time = levels.path, levels.times[index]
    x_t = float(torch.hypot(path.alpha(time), path.sigma(time))) * x
    x0: Tensor = denoiser(x_t, levels.time(index, x), cond)  # type: ignore[arg-type]
    return x0


def _ends(path: Path, low: float, high: float) -> tuple[float, float]:
    """Return the first and the last ratio of a path between `high` and `low`."""
    last, first = path.nsr(path.time(torch.tensor([low, high], dtype=torch.float64))).tolist()
    return first, last
