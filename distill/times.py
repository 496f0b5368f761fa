"""Where on a path to train. A law of times is the quantile function of its noise-to-signal ratio.

`nsr(u, path)` maps u in (0, 1), float64 [B], to ratios [B]: feed uniform numbers and it samples the law; feed a grid
and it integrates over it. All laws are stated in the noise-to-signal ratio (EDM's sigma), so one objective serves
every path; laws of flow time or of step indices say how they map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.errors import UserError
from distill.paths import DiscreteVP, Flow, Path, ramp


@dataclass(frozen=True)
class Times:
    """A law of training times, given by its quantiles."""

    def nsr(self, u: Tensor, path: Path) -> Tensor:
        """The noise-to-signal ratio [B] at the quantiles `u` [B] in (0, 1)."""
        raise NotImplementedError

    def check(self, path: Path) -> None:
        """Raise UserError when the law means nothing on `path`."""


@dataclass(frozen=True)
class LogNormal(Times):
    """ln nsr ~ N(mean, std^2); EDM trains with (-1.2, 1.2), EDM2 with (-0.4, 1.0).

    Since nsr = t/(1-t) on a flow path, this is also the logit-normal law of flow time (SD3, arXiv:2403.03206)
    with the same two numbers.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise UserError(f"std: must be positive, got {self.std}")

    def nsr(self, u: Tensor, path: Path) -> Tensor:
        normal: Tensor = torch.special.ndtri(u)
        return (self.mean + self.std * normal).exp()


@dataclass(frozen=True)
class Karras(Times):
    """Uniform on EDM's ramp of noise levels; `upto` keeps the lower part: 0.8 ends at nsr 24.4 (SiD's t_max = 800)."""

    low: float = 0.002
    high: float = 80.0
    rho: float = 7.0
    upto: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise UserError(f"low, high: must satisfy 0 < low < high, got {self.low} and {self.high}")
        if not self.rho > 0:
            raise UserError(f"rho: must be positive, got {self.rho}")
        if not 0 < self.upto <= 1:
            raise UserError(f"upto: must be in (0, 1], got {self.upto}")

    def nsr(self, u: Tensor, path: Path) -> Tensor:
        return ramp(u * self.upto, self.low, self.high, self.rho)


@dataclass(frozen=True)
class UniformFlow(Times):
    """Uniform in the flow time t = nsr/(1 + nsr) between `low` and `high`."""

    low: float = 0.001
    high: float = 0.999

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < 1:
            raise UserError(f"low, high: must satisfy 0 < low < high < 1, got {self.low} and {self.high}")

    def nsr(self, u: Tensor, path: Path) -> Tensor:
        return Flow().nsr(self.low + u * (self.high - self.low))


@dataclass(frozen=True)
class UniformSteps(Times):
    """Uniform over the steps first ... last, both included, of a discrete path (SiD-LSG and DMD: 20 ... 979)."""

    first: int = 20
    last: int = 979

    def nsr(self, u: Tensor, path: Path) -> Tensor:
        self.check(path)
        return path.nsr(self.first + (u * (self.last - self.first + 1)).floor())

    def check(self, path: Path) -> None:
        if not isinstance(path, DiscreteVP):
            raise UserError(f"times: uniform_steps needs a discrete_vp path, the teacher's is {path}")
        if not 0 <= self.first <= self.last < len(path.alphas_cumprod):
            raise UserError(f"times: steps {self.first} to {self.last} do not fit 0 to {len(path.alphas_cumprod) - 1}")


TIMES: dict[str, type[Times]] = {
    "lognormal": LogNormal,
    "karras": Karras,
    "uniform_flow": UniformFlow,
    "uniform_steps": UniformSteps,
}
