"""Power-function averages of a trajectory of weights, and any other width made of them afterwards.

EDM2 (arXiv:2312.02696), section 3 and appendix C. The average of relative width `std` after `images` images weighs the
weights of the past by the profile p(tau) = (gamma + 1) tau^gamma / images^(gamma + 1) on 0 <= tau <= images, whose
standard deviation is `std` in units of `images`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from distill.errors import UserError

WIDEST = 12**-0.5  # gamma = 0, the plain mean; a wider profile would weigh the past above the present


@dataclass(frozen=True)
class PowerProfile:
    """The profile of relative width `std`; raises UserError when no gamma > 0 has that width."""

    std: float

    def __post_init__(self) -> None:
        if not 0 < self.std < WIDEST:
            raise UserError(f"std: must be above 0 and below 0.2887 (the plain mean), got {self.std}")

    @cached_property
    def gamma(self) -> float:
        """The exponent: (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) = std^2, the largest root of that cubic."""
        v = self.std**-2
        companion = [[-7.0, v - 16, v - 12], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
        return float(torch.linalg.eigvals(torch.tensor(companion, dtype=torch.float64)).real.max())

    def beta(self, images: int, batch_size: int) -> float:
        """The factor kept of the old average in the update after `images` images, of `batch_size`; at first 0."""
        return float((images / (images + batch_size)) ** (self.gamma + 1))


def posthoc(
    images: Sequence[float], stds: Sequence[float], wanted_images: float, wanted_std: float
) -> tuple[Tensor, float]:
    """Coefficients [N] (float64, sum 1) that make the wanted average of N averages, and what they leave of it.

    Average i has relative width `stds[i]` and ends at `images[i]`. The combination's profile is the nearest to the
    wanted one in L2, then divided by its sum: the paper leaves the sum free (appendix C), its published code does not.
    The second result is the L2 distance that remains, relative to the wanted profile; 0 is exact.
    """
    ends, wanted_end = _float64(images), _float64([wanted_images])
    gamma, wanted_gamma = (_float64([PowerProfile(std).gamma for std in part]) for part in (stds, [wanted_std]))
    gram = _overlap(ends[:, None], gamma[:, None], ends, gamma)
    right = _overlap(ends, gamma, wanted_end, wanted_gamma)
    # Neighbouring snapshots are nearly parallel; this driver drops directions that rounding alone would fill.
    x = torch.linalg.lstsq(gram, right[:, None], driver="gelsd").solution[:, 0]
    x = x / x.sum()
    norm = _overlap(wanted_end, wanted_gamma, wanted_end, wanted_gamma)
    left = 1 - (2 * x @ right - x @ gram @ x) / norm
    return x, float(left.clamp(min=0).sqrt())


def _overlap(end: Tensor, gamma: Tensor, other_end: Tensor, other_gamma: Tensor) -> Tensor:
    """The integral of the product of two profiles, elementwise."""
    early, late = torch.minimum(end, other_end), torch.maximum(end, other_end)
    of_later = torch.where(end < other_end, other_gamma, gamma)
    return (gamma + 1) * (other_gamma + 1) / (gamma + other_gamma + 1) * (early / late) ** of_later / late


def _float64(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
