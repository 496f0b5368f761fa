"""Power-function averages of a trajectory of weights, and the combination of such averages to another width.

The source is EDM2 (arXiv:2312.02696), section 3 and appendix C. After `images` images, the average of relative width
`std` weighs the past weights by the profile p(tau) = (gamma + 1) tau^gamma / images^(gamma + 1) on 0 <= tau <= images.
The standard deviation of this profile is `std` in units of `images`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from distill.errors import require

WIDEST = 12**-0.5  # at gamma = 0, the plain mean. A wider profile would weigh the past above the present.


@dataclass(frozen=True)
class PowerProfile:
    """The profile of relative width `std`.

    Raises:
        UserError: No gamma > 0 has this width.
    """

    std: float

    def __post_init__(self) -> None:
        require(0 < self.std < WIDEST, f"std: must be above 0 and below 0.2887 (the plain mean), got {self.std}")

    @cached_property
    def gamma(self) -> float:
        """The exponent: the largest root of the cubic (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) = std^2."""
        # The eigenvalues of the companion matrix of a polynomial are its roots.
        v = self.std**-2
        companion = [[-7.0, v - 16, v - 12], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
        return float(torch.linalg.eigvals(torch.tensor(companion, dtype=torch.float64)).real.max())

    def beta(self, images: int, batch_size: int) -> float:
        """Return the factor on the old average in the update of the average. It is 0 in the first update.

        Args:
            images: The number of images before the update.
            batch_size: The number of images of the update.
        """
        return float((images / (images + batch_size)) ** (self.gamma + 1))


def posthoc(
    images: Sequence[float], stds: Sequence[float], wanted_images: float, wanted_std: float
) -> tuple[Tensor, float]:
    """Return the combination of N averages that comes nearest to a wanted average.

    The profile of the combination is the nearest to the wanted one in L2. The coefficients are then divided by their
    sum, as in the published code. The paper leaves the sum free (appendix C).

    Args:
        images: The number of images at the end of each average, N numbers.
        stds: The relative width of each average, N numbers.
        wanted_images: The number of images at the end of the wanted average.
        wanted_std: The relative width of the wanted average.

    Returns:
        The coefficients, float64 [N] with the sum 1, and the L2 distance between the two profiles, relative to the
        wanted one. At distance 0 the combination is exact.

    Raises:
        UserError: A width is not above 0 and below that of the plain mean.
    """
    ends, wanted_end = _float64(images), _float64([wanted_images])
    gamma, wanted_gamma = (_float64([PowerProfile(std).gamma for std in part]) for part in (stds, [wanted_std]))
    gram = _overlap(ends[:, None], gamma[:, None], ends, gamma)
    right = _overlap(ends, gamma, wanted_end, wanted_gamma)
    # Neighbouring snapshots are nearly parallel. This driver drops the directions that hold rounding errors alone.
    x = torch.linalg.lstsq(gram, right[:, None], driver="gelsd").solution[:, 0]
    x = x / x.sum()
    norm = _overlap(wanted_end, wanted_gamma, wanted_end, wanted_gamma)
    square = 1 - (2 * x @ right - x @ gram @ x) / norm
    return x, float(square.clamp(min=0).sqrt())  # rounding may leave less than 0


def _overlap(end: Tensor, gamma: Tensor, other_end: Tensor, other_gamma: Tensor) -> Tensor:
    """Return the integrals of the products of pairs of profiles, elementwise."""
    early, late = torch.minimum(end, other_end), torch.maximum(end, other_end)
    of_later = torch.where(end < other_end, other_gamma, gamma)
    return (gamma + 1) * (other_gamma + 1) / (gamma + other_gamma + 1) * (early / late) ** of_later / late


def _float64(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
