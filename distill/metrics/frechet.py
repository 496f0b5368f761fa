"""The Frechet distance between two sets of features, from their means and covariances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from distill.errors import UserError, require

_ROUNDING = 1e-4  # files of moments are often float32: an eigenvalue above -1e-4 of the largest is a rounding error


@dataclass(frozen=True, eq=False)
class Moments:
    """The mean and the covariance of a set of features.

    Attributes:
        mean: The mean [D].
        covariance: The unbiased covariance [D, D].
        count: The number of features.

    Raises:
        UserError: The shapes are not [D] and [D, D].
    """

    mean: Tensor
    covariance: Tensor
    count: int

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.covariance.shape != (len(self.mean), len(self.mean)):
            given = f"mean {list(self.mean.shape)} and covariance {list(self.covariance.shape)}"
            raise UserError(f"moments: {given} given, expected [D] and [D, D]")

    def check(self) -> None:
        """Raise UserError if no features can have these moments, as those of a file may be.

        A distance to them would say so too, but only when all samples are drawn.
        """
        covariance = self.covariance.double()
        largest = torch.finfo(torch.float32).max  # features are float32, and their variances are far below
        if not all(bool(one.numel()) and float(one.abs().max()) < largest for one in (self.mean, covariance)):
            raise UserError("moments: NaN, infinity or numbers beyond float32 given, expected those of features")
        scale = covariance.norm()  # at least the largest eigenvalue
        if float((covariance - covariance.T).abs().max()) > _ROUNDING * float(scale):
            raise UserError("moments: a covariance that is not symmetric given")
        # It has a Cholesky factor where no eigenvalue is below 0 by more than a rounding error.
        eye = torch.eye(len(covariance), dtype=covariance.dtype)
        factored = torch.linalg.cholesky_ex(covariance + (_ROUNDING * scale + torch.finfo(scale.dtype).tiny) * eye)
        require(not factored.info, "moments: a covariance with eigenvalues below 0 given")

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Return the moments of features.

        Args:
            features: Features [N, D]. N may be 0 or 1, as in the last batch of a rank. The covariance is then 0, and a
                later merge is still exact.

        Returns:
            The moments in float64 on the CPU. The sums are taken on the device of the features.

        Raises:
            UserError: The features are not [N, D].
        """
        require(features.ndim == 2, f"features: {list(features.shape)} given, expected [N, D]")
        features = features.detach().double()
        count = len(features)
        mean = features.sum(dim=0) / max(count, 1)
        centred = features - mean
        covariance = centred.T @ centred / max(count - 1, 1)
        return cls(mean.cpu(), covariance.cpu(), count)

    def merge(self, other: Moments) -> Moments:
        """Return the moments of the union of two sets (Chan, Golub and LeVeque 1983, eq. 2.1).

        Raises:
            UserError: The dimensions D differ.
        """
        _same_dimension(self, other)
        count = self.count + other.count
        share = other.count / max(count, 1)
        step = other.mean - self.mean
        # The scatter about the common mean is the sum of the two sets' own scatters and the scatter of their means.
        scatter = self.covariance * (self.count - 1) + other.covariance * (other.count - 1)
        scatter = scatter + torch.outer(step, step) * (self.count * share)
        return Moments(self.mean + step * share, scatter / max(count - 1, 1), count)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return the squared Frechet distance between the Gaussians with the moments `a` and `b`.

    It is |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a^(1/2) S_b S_a^(1/2))^(1/2)), at least 0 (Heusel et al. 2017,
    arXiv:1706.08500, eq. 6). The computation is in float64 on the CPU. The covariances may be singular.

    Raises:
        UserError: The dimensions differ, a set has fewer than 2 samples, moments are not finite, or a covariance has
            negative eigenvalues.
    """
    _same_dimension(a, b)
    root_a, root_b = _root(a), _root(b)
    # With S = R R^T, the trace of the square root is the sum of the singular values of R_a^T R_b. These are exact to
    # 1e-14 where a covariance is singular, and the square roots of the eigenvalues of a product are not.
    overlap = torch.linalg.svdvals(root_a.T @ root_b).sum()
    step = (a.mean - b.mean).to("cpu", torch.float64)
    distance = step.square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * overlap
    return max(float(distance), 0.0)  # rounding may leave less than 0 for equal sets


def _same_dimension(a: Moments, b: Moments) -> None:
    if len(a.mean) != len(b.mean):
        raise UserError(f"moments: {len(a.mean)} and {len(b.mean)} dimensions given, expected the same number")


def _root(moments: Moments) -> Tensor:
    """Return R [D, D] with R R^T = covariance, or raise UserError when the moments cannot be those of data."""
    require(moments.count >= 2, f"Frechet distance: a set of {moments.count} samples given, expected at least 2")
    covariance = moments.covariance.to("cpu", torch.float64)
    if not (moments.mean.isfinite().all() and covariance.isfinite().all()):
        raise UserError("Frechet distance: moments with NaN or infinity given, expected finite features")
    values, vectors = torch.linalg.eigh(covariance)
    if values[0] < -_ROUNDING * values[-1].abs():
        raise UserError(f"Frechet distance: covariance eigenvalue {float(values[0]):.3g} given, expected none below 0")
    # Rounding leaves eigenvalues of 1e-16 in directions without variance, and their roots of 1e-8 would count.
    spread = torch.where(values > values[-1] * len(values) * torch.finfo(values.dtype).eps, values, 0.0).sqrt()
    return cast(Tensor, vectors * spread)
