"""The real images of a protocol, by the statistics of their features."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from distill.metrics.frechet import Moments


@dataclass(frozen=True, eq=False)
class Reference:
    """The statistics of the features of real images.

    Attributes:
        name: The name of the data set, or of the file of published statistics.
        moments: The moments of the features.
        count: The number of images. None for published statistics, which do not say it.
        features: Features [M, D] of at most MOST_KEPT of them at random, for KID, precision and recall. None where the
            moments alone are known.
    """

    name: str
    moments: Moments
    count: int | None
    features: Tensor | None = None

    def __str__(self) -> str:
        return self.name if self.count is None else f"{self.name}, {self.count} real"


MOST_KEPT = 50_000
"""The largest number of real images whose features are kept, for KID, precision and recall."""
