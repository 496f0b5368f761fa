"""The statistics of samples that come in parts, on several processes: sums, and features where a metric needs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

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
        count: The number of samples.
        moments: The moments of the features. None without an extractor.
        labelled: The number of samples whose predicted label was compared with the wanted one.
        agreeing: The number of those whose predicted label is the wanted one.
        predictions: The sums of the Inception Score. None for an extractor without logits.
        totals: The sums of the scores of the samples, by name.
        features: The features [N, D] in parts, in the order of the samples, on the CPU. Empty unless a metric needs
            them.
    """

    count: int
    moments: Moments | None = None
    labelled: int = 0
    agreeing: int = 0
    predictions: PredictionSums | None = None
    totals: Mapping[str, float] = field(default_factory=dict)
    features: tuple[Tensor, ...] = field(default=(), repr=False)

    @classmethod
    def of(
        cls,
        found: Extracted | None,
        numbers: Tensor,
        count: int,
        labels: Tensor | None = None,
        scores: Mapping[str, Tensor] = MappingProxyType({}),
        keep: bool = False,
    ) -> Tally:
        """Return the statistics of some samples.

        Args:
            found: The findings about them. None without an extractor.
            numbers: Their numbers in the evaluation, int64 [N] on the CPU. Those from `count` on do not count.
            count: The number of samples of the evaluation.
            labels: The labels [N] that they should show, on the CPU. None where agreement is not measured.
            scores: Their scores [N] by name, on the CPU.
            keep: Whether to keep the features, also of those that do not count, so that processes keep as many.
        """
        counted = int((numbers < count).sum())
        totals = {name: float(each[:counted].double().sum()) for name, each in scores.items()}
        if found is None:
            return cls(counted, totals=totals)
        labelled, agreeing, predictions = 0, 0, None
        if labels is not None and found.predicted is not None:
            labelled = counted
            agreeing = int((found.predicted[:counted] == labels[:counted]).sum())
        if found.logits is not None:
            predictions = PredictionSums.of(found.logits[:counted], numbers[:counted], count)
        features = (found.features.detach().cpu(),) if keep else ()
        moments = Moments.of(found.features[:counted])
        return cls(counted, moments, labelled, agreeing, predictions, totals, features)

    def merge(self, other: Tally) -> Tally:
        """Return the statistics of the union of two sets of samples."""
        moments, predictions = self.moments, self.predictions
        if moments is not None and other.moments is not None:
            moments = moments.merge(other.moments)
        if predictions is not None and other.predictions is not None:
            predictions = predictions.merge(other.predictions)
        return Tally(
            self.count + other.count,
            moments,
            self.labelled + other.labelled,
            self.agreeing + other.agreeing,
            predictions,
            {name: total + other.totals[name] for name, total in self.totals.items()},
            self.features + other.features,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the statistics as tensors by name, which processes can send to each other. `of_tensors` reads them."""
        counts = torch.tensor([self.count, self.labelled, self.agreeing], dtype=torch.float64)
        found = {"counts": counts}
        found |= {f"total {name}": torch.tensor(total, dtype=torch.float64) for name, total in self.totals.items()}
        if self.moments is not None:
            found |= {"mean": self.moments.mean, "covariance": self.moments.covariance}
        if self.predictions is not None:
            found |= {name: getattr(self.predictions, name) for name in ("probabilities", "negentropy", "sizes")}
        if self.features:
            found["features"] = torch.cat(self.features)
        return found

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Tally:
        """Return the statistics in tensors of `tensors`."""
        count, labelled, agreeing = (int(number) for number in tensors["counts"])
        moments, predictions = None, None
        if "mean" in tensors:
            moments = Moments(tensors["mean"], tensors["covariance"], count)
        if "negentropy" in tensors:
            predictions = PredictionSums(tensors["probabilities"], tensors["negentropy"], tensors["sizes"])
        totals = {name[6:]: float(value) for name, value in tensors.items() if name.startswith("total ")}
        features = (tensors["features"],) if "features" in tensors else ()
        return cls(count, moments, labelled, agreeing, predictions, totals, features)
