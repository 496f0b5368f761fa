"""The statistics of samples that come in parts, on several processes: sums, and features where a metric needs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from distill.metrics.extractor import Extracted
from distill.metrics.frechet import Moments
from distill.metrics.inception_score import PredictionSums


@dataclass(frozen=True, eq=False)
class Tally:
    """The statistics of a part of the samples of an evaluation.

    All but the features are sums in float64, so that the numbers of an evaluation do not depend on the parts but for
    rounding.

    Attributes:
        moments: The moments of the features.
        labelled: The number of samples whose predicted label was compared with the wanted one.
        agreeing: The number of those whose predicted label is the wanted one.
        predictions: The sums of the Inception Score. None for an extractor without logits.
        features: The features [N, D] in parts, in the order of the samples, on the CPU. Empty unless a metric needs
            them.
    """

    moments: Moments
    labelled: int = 0
    agreeing: int = 0
    predictions: PredictionSums | None = None
    features: tuple[Tensor, ...] = field(default=(), repr=False)

    @classmethod
    def of(
        cls, found: Extracted, numbers: Tensor, count: int, labels: Tensor | None = None, keep: bool = False
    ) -> Tally:
        """Return the statistics of some samples.

        Args:
            found: The findings about them.
            numbers: Their numbers in the evaluation, int64 [N] on the CPU. Those from `count` on do not count.
            count: The number of samples of the evaluation.
            labels: The labels [N] that they should show, on the CPU. None where agreement is not measured.
            keep: Whether to keep the features, also of those that do not count, so that processes keep as many.
        """
        counted = int((numbers < count).sum())
        labelled, agreeing, predictions = 0, 0, None
        if labels is not None and found.predicted is not None:
            labelled = counted
            agreeing = int((found.predicted[:counted] == labels[:counted]).sum())
        if found.logits is not None:
            predictions = PredictionSums.of(found.logits[:counted], numbers[:counted], count)
        features = (found.features.detach().cpu(),) if keep else ()
        return cls(Moments.of(found.features[:counted]), labelled, agreeing, predictions, features)

    def merge(self, other: Tally) -> Tally:
        """Return the statistics of the union of two sets of samples."""
        predictions = self.predictions
        if predictions is not None and other.predictions is not None:
            predictions = predictions.merge(other.predictions)
        return Tally(
            self.moments.merge(other.moments),
            self.labelled + other.labelled,
            self.agreeing + other.agreeing,
            predictions,
            self.features + other.features,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the statistics as tensors by name, which processes can send to each other. `of_tensors` reads them."""
        counts = torch.tensor([self.moments.count, self.labelled, self.agreeing], dtype=torch.float64)
        found = {"counts": counts, "mean": self.moments.mean, "covariance": self.moments.covariance}
        if self.predictions is not None:
            found |= {name: getattr(self.predictions, name) for name in ("probabilities", "negentropy", "sizes")}
        if self.features:
            found["features"] = torch.cat(self.features)
        return found

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Tally:
        """Return the statistics in tensors of `tensors`."""
        count, labelled, agreeing = (int(number) for number in tensors["counts"])
        predictions = None
        if "negentropy" in tensors:
            predictions = PredictionSums(tensors["probabilities"], tensors["negentropy"], tensors["sizes"])
        features = (tensors["features"],) if "features" in tensors else ()
        return cls(Moments(tensors["mean"], tensors["covariance"], count), labelled, agreeing, predictions, features)
