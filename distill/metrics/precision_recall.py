"""Precision and recall of a set of samples, from nearest neighbours among features."""

import torch
from torch import Tensor

from distill.errors import UserError

NEIGHBOURS = 3
"""The nearest neighbours within which the ball of a feature lies (Kynkaanniemi et al. 2019)."""
_AT_ONCE = 4_096  # rows of a matrix of distances


def precision_recall(generated: Tensor, real: Tensor, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Return precision and recall, both in [0, 1].

    Precision is the share of samples that lie in the ball of some real image. Recall is the share of real images that
    lie in the ball of some sample. The ball of a feature reaches to the k-th nearest other feature of its own set
    (arXiv:1904.06991, eq. 1 and 2). Distances are in the dtype of the features.

    Args:
        generated: Features [N, D] of samples, N > k.
        real: Features [M, D] of real images, M > k.
        neighbours: The number k of neighbours.

    Raises:
        UserError: A set has fewer features.
    """
    if (fewest := min(len(generated), len(real))) <= neighbours:
        raise UserError(f"precision and recall: a set of {fewest} given, expected at least {neighbours + 1}")
    precision = _share_inside(generated, real, neighbours)
    return precision, _share_inside(real, generated, neighbours)


def _share_inside(points: Tensor, others: Tensor, neighbours: int) -> float:
    """Return the share of `points` [N, D] in the balls of `others` [M, D]."""
    # A feature is the nearest of its own set to itself, hence one more.
    radii = torch.cat([torch.cdist(part, others).kthvalue(neighbours + 1).values for part in others.split(_AT_ONCE)])
    inside = [(torch.cdist(part, others) <= radii).any(dim=1) for part in points.split(_AT_ONCE)]
    return float(torch.cat(inside).double().mean())
