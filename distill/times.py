"""Laws of training times: the distributions of the noise levels at which losses are computed.

A law is the quantile function of its noise-to-signal ratio, which is EDM's sigma. `nsr(u, path)` maps quantiles u in
(0, 1), float64 [B], to ratios [B]. Uniform random u sample the law, and an even grid of u integrates over it. A ratio
means the same on every path, so one law and one objective serve all paths. Laws of the flow time or of step indices say
how they map to the ratio.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from distill.errors import UserError, require
from distill.paths import DiscreteVP, Flow, Path, ramp


@dataclass(frozen=True)
class Times:
    """A law of training times, given by its quantiles."""

    def nsr(self, u: Tensor, path: Path) -> Tensor:
        """Return the noise-to-signal ratios [B] at the quantiles `u` [B] in (0, 1)."""
        raise NotImplementedError

    def check(self, path: Path) -> None:
        """Raise UserError when the law has no meaning on `path`."""


@dataclass(frozen=True)
class LogNormal(Times):
    """The law ln nsr ~ N(mean, std^2). EDM trains with (-1.2, 1.2), and EDM2 with (-0.4, 1.0).

    On a flow path nsr = t / (1 - t), so this is also the logit-normal law of the flow time (SD3, arXiv:2403.03206) with
    the same mean and std.

    Attributes:
        mean: The mean of ln nsr.
        std: The standard deviation of ln nsr.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        require(self.std > 0, f"std: must be positive, got {self.std}")

    def nsr(self, u: Tensor, path: Path) -> Tensor:
        return cast(Tensor, (self.mean + self.std * torch.special.ndtri(u)).exp())


@dataclass(frozen=True)
class Karras(Times):
    """The uniform law on EDM's ramp of noise levels (distill.paths.ramp).

    Attributes:
        low: The ratio at the lower end of the ramp.
        high: The ratio at the upper end of the ramp.
        rho: The exponent of the ramp.
        upto: The share of the ramp that is used, from its lower end. At 0.8 it ends at the ratio 24.4, which is SiD's
            t_max = 800 of 1000.
    """

    low: float = 0.002
    high: float = 80.0
    rho: float = 7.0
    upto: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.low < self.high, f"low, high: must satisfy 0 < low < high, got {self.low} and {self.high}")
        require(self.rho > 0, f"rho: must be positive, got {self.rho}")
        require(0 < self.upto <= 1, f"upto: must be in (0, 1], got {self.upto}")

    def nsr(self, u: Tensor, path: Path) -> Tensor:
        return ramp(u * self.upto, self.low, self.high, self.rho)


@dataclass(frozen=True)
class UniformFlow(Times):
    """The uniform law of the flow time t = nsr / (1 + nsr) between `low` and `high`.

    Attributes:
        low: The smallest flow time.
        high: The largest flow time.
    """

    low: float = 0.001
    high: float = 0.999

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < 1:
            raise UserError(f"low, high: must satisfy 0 < low < high < 1, got {self.low} and {self.high}")

    def nsr(self, u: Tensor, path: Path) -> Tensor:
        return Flow().nsr(self.low + u * (self.high - self.low))


@dataclass(frozen=True)
class UniformSteps(Times):
    """The uniform law over the steps `first` to `last`, both included, of a discrete path.

    SiD-LSG and DMD use the steps 20 to 979.

    Attributes:
        first: The first step.
        last: The last step.
    """

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
"""The laws by their names in recipes."""
