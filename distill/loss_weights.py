"""Weights of losses as functions of the noise level.

Weights of the denoising loss |D(x_t) - x0|^2 have the name of the network output whose plain squared error they give.
Every positive weight has the same optimum. Weights of a generator's loss say which noise levels count.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from distill.errors import UserError, require

NamedWeight = Literal["edm", "eps", "v", "velocity", "x0"]
GeneratorWeight = Literal["none", "1-t", "(1-t)^2", "1/t", "snr", "snr/(1+snr)"]


@dataclass(frozen=True)
class WeightTable:
    """A weight that was measured at some noise levels. In between, its logarithm is linear in that of the level.

    With the weight 1 / (the teacher's mean squared error at the level), every level has the same share in the loss of a
    fake that is as good as the teacher, whatever its network predicts. EDM2 learns such a weight while it trains its
    teachers (arXiv:2312.02696, section 2.2).

    Attributes:
        nsr: The noise-to-signal ratios, rising. Below the first and above the last, the weight is constant.
        weight: The weight at each of them, positive.

    Raises:
        UserError: The two lists do not fit together.
    """

    nsr: tuple[float, ...]
    weight: tuple[float, ...]
    _logs: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require(len(self.nsr) == len(self.weight) >= 2, "nsr, weight: must be two lists of the same length, at least 2")
        rising = all(low < high for low, high in zip(self.nsr, self.nsr[1:], strict=False))
        require(rising and self.nsr[0] > 0, "nsr: must be positive and rising")
        require(all(weight > 0 for weight in self.weight), "weight: must be positive")
        # A frozen dataclass sets its own fields by object.__setattr__.
        object.__setattr__(self, "_logs", torch.tensor([self.nsr, self.weight], dtype=torch.float64).log())

    def __call__(self, nsr: Tensor) -> Tensor:
        """Return the weights [B] at the noise-to-signal ratios `nsr` [B]."""
        knots, values = self._logs.to(nsr.device)
        at = nsr.double().log().clamp(knots[0], knots[-1])
        above = torch.searchsorted(knots, at).clamp(1, len(knots) - 1)
        share = (at - knots[above - 1]) / (knots[above] - knots[above - 1])
        return torch.lerp(values[above - 1], values[above], share).exp().to(nsr.dtype)


Weight = NamedWeight | WeightTable
"""The weight of a denoising loss: by its name, or by a table."""
DENOISING: dict[NamedWeight, Callable[[Tensor, float], Tensor]] = {
    "edm": lambda nsr, sigma_data: 1 / nsr**2 + 1 / sigma_data**2,
    "eps": lambda nsr, _: 1 / nsr**2,
    "v": lambda nsr, _: 1 + 1 / nsr**2,
    "velocity": lambda nsr, _: (1 + 1 / nsr) ** 2,
    "x0": lambda nsr, _: torch.ones_like(nsr),
}
"""The weights of the denoising loss as functions of the noise-to-signal ratio and of the data's standard deviation."""
GENERATOR: dict[GeneratorWeight, Callable[[Tensor], Tensor]] = {
    "none": torch.ones_like,
    "1-t": lambda nsr: 1 / (1 + nsr),
    "(1-t)^2": lambda nsr: 1 / (1 + nsr) ** 2,
    "1/t": lambda nsr: 1 + 1 / nsr,
    "snr": lambda nsr: 1 / nsr**2,
    "snr/(1+snr)": lambda nsr: 1 / (1 + nsr**2),
}
"""The weights of a generator's loss as functions of the noise-to-signal ratio."""


def denoising_weight(weight: Weight | None, nsr: Tensor, sigma_data: float = 0.5) -> Tensor:
    """Return the weight of the denoising loss.

    - edm: (nsr^2 + sd^2) / (nsr sd)^2 for sd = sigma_data, which is EDM's lambda (arXiv:2206.00364, table 1)
    - eps: 1 / nsr^2
    - v: 1 + 1 / nsr^2
    - velocity: 1 / t^2 with the flow time t = nsr / (1 + nsr), the plain velocity error of a rectified flow
    - x0: 1

    Args:
        weight: The name of the weight, or a table. None for EDM's.
        nsr: Noise-to-signal ratios [B].
        sigma_data: The standard deviation of the data, which `edm` alone uses.

    Returns:
        The weights [B].

    Raises:
        UserError: The name is unknown.
    """
    if isinstance(weight, WeightTable):
        return weight(nsr)
    weight = weight or "edm"
    if weight not in DENOISING:
        raise UserError(f"weight: must be one of {', '.join(DENOISING)}, got {weight!r}")
    return DENOISING[weight](nsr, sigma_data)


def generator_weight(weight: GeneratorWeight, nsr: Tensor) -> Tensor:
    """Return the weight of a generator's loss in x0.

    The flow time t = nsr / (1 + nsr) and snr = 1 / nsr^2 are functions of the ratio, so a name means the same on every
    path. SiD's code for flow transformers (arXiv:2509.25127) has the weights none, 1-t (its default), (1-t)^2 and 1/t,
    and some that use snr (unverified which).

    Args:
        weight: The name of the weight, which is also its formula. `none` is 1.
        nsr: Noise-to-signal ratios [B].

    Returns:
        The weights [B].

    Raises:
        UserError: The name is unknown.
    """
    if weight not in GENERATOR:
        raise UserError(f"weight: must be one of {', '.join(GENERATOR)}, got {weight!r}")
    return GENERATOR[weight](nsr)
