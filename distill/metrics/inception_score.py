"""The Inception Score, from sums over the predictions for a set of samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SPLITS = 10
"""The parts of a set whose scores are averaged (Salimans et al. 2016)."""


@dataclass(frozen=True, eq=False)
class PredictionSums:
    """Sums over the class probabilities p of the samples in each of SPLITS parts of a set, in float64 on the CPU.

    Attributes:
        probabilities: The sum of p, [SPLITS, K].
        negentropy: The sum of p . ln p, [SPLITS].
        sizes: The number of samples, [SPLITS].
    """

    probabilities: Tensor
    negentropy: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, logits: Tensor, numbers: Tensor, count: int) -> PredictionSums:
        """Return the sums over some samples of a set.

        Args:
            logits: Their logits [N, K].
            numbers: Their numbers in the set, int64 [N].
            count: The number of samples of the whole set. Its parts are runs of equal length.
        """
        log_p = logits.double().log_softmax(dim=1)
        p = log_p.exp()
        # Part i holds the numbers from i count // SPLITS up to (i + 1) count // SPLITS.
        parts = (((numbers + 1) * SPLITS - 1) // count).to(p.device)
        zeros = torch.zeros(SPLITS, p.shape[1], dtype=torch.float64, device=p.device)
        negentropy = zeros[:, 0].index_add(0, parts, (p * log_p).sum(dim=1))
        sizes = parts.bincount(minlength=SPLITS).double()
        return cls(zeros.index_add(0, parts, p).cpu(), negentropy.cpu(), sizes.cpu())

    def merge(self, other: PredictionSums) -> PredictionSums:
        """Return the sums over the union of two sets."""
        return PredictionSums(
            self.probabilities + other.probabilities,
            self.negentropy + other.negentropy,
            self.sizes + other.sizes,
        )

    def score(self) -> tuple[float, float]:
        """Return the mean and the standard deviation of the Inception Score over the parts of the set.

        The score of a part is exp(E[KL(p(y|x) || p(y))]) (Salimans et al. 2016, arXiv:1606.03498, section 4). It is NaN
        where a part has no samples.
        """
        mean = self.probabilities / self.sizes[:, None]
        marginal = torch.special.xlogy(mean, mean).sum(dim=1)
        scores = (self.negentropy / self.sizes - marginal).exp()
        return float(scores.mean()), float(scores.std(unbiased=False))
