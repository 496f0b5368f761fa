"""The kernel distance between two sets of features (KID)."""

import torch
from torch import Tensor

from distill.errors import UserError

SUBSETS, SUBSET = 100, 1_000
"""The number of subsets, and the samples in each: those of torch-fidelity."""


def kernel_distance(
    generated: Tensor, real: Tensor, subsets: int = SUBSETS, size: int = SUBSET, seed: int = 2020
) -> tuple[float, float]:
    """Return the mean and the standard deviation of the kernel distance over random subsets of two sets.

    It is the squared maximum mean discrepancy under the kernel (a.b / D + 1)^3, without the diagonals of the sets
    themselves (Binkowski et al. 2018, arXiv:1801.01401, section 4). The subsets are those that torch-fidelity draws.

    Args:
        generated: Features [N, D] of samples.
        real: Features [M, D] of real images.
        subsets: The number of subsets.
        size: The number of features in a subset of each set.
        seed: The seed of the subsets.

    Raises:
        UserError: A set has fewer than `size` features.
    """
    import numpy as np

    if min(len(generated), len(real)) < size:
        raise UserError(f"KID: {len(generated)} samples and {len(real)} real images, expected at least {size} of each")
    draw, distances = np.random.RandomState(seed), []
    for _ in range(subsets):
        first, second = (
            one[torch.from_numpy(draw.choice(len(one), size, replace=False))].double() for one in (generated, real)
        )
        between = _kernel(first, second).mean()
        distances.append(float(_mean_of_pairs(first) + _mean_of_pairs(second) - 2 * between))
    return float(np.mean(distances)), float(np.std(distances))


def _mean_of_pairs(a: Tensor) -> Tensor:
    """Return the mean of the kernel over the pairs of different features of a set [N, D]."""
    kernel = _kernel(a, a)
    return (kernel.sum() - kernel.trace()) / (len(a) * (len(a) - 1))


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """Return the kernel of all pairs of features a [N, D] and b [M, D], [N, M]."""
    return (a @ b.T / a.shape[1] + 1) ** 3
