"""The protocol of an evaluation: a named, deterministic comparison of generated images with real ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from distill.errors import UserError, require
from distill.metrics.extractor import COMPONENTS, Components, Extractor
from distill.metrics.frechet import Moments, frechet_distance
from distill.metrics.images import checked_labels, resized
from distill.metrics.kid import SUBSET, kernel_distance
from distill.metrics.precision_recall import NEIGHBOURS, precision_recall
from distill.metrics.reference import Reference
from distill.metrics.tally import Tally
from distill.metrics.text_scores import TextScores

METRICS = ("frechet", "inception_score", "kid", "precision", "recall", "label_agreement")
"""The metrics of a protocol. The smaller the first and the third, the better; of the others the larger."""
SMALLER_IS_BETTER = frozenset({"frechet", "kid"})
FROM_FEATURES = frozenset({"kid", "precision", "recall"})
"""The metrics that need the features of every sample, and of real images."""
_SPLITS = 10  # random halvings, with the seeds 0 to 9


@dataclass(frozen=True, eq=False)
class Protocol:
    """The comparison of the features of generated and real images, by the metrics that extractor and reference allow.

    Numbers can be compared only under the same name of the protocol and for the same number of samples. Moments and
    distances are computed in float64 on the CPU.

    Attributes:
        extractor: The extractor of features, labels and logits. None where scores alone are measured.
        real: The statistics of the real images. None without an extractor.
        metrics: The metrics that are measured beside the scores.
        halves: The mean distance between random halves of the real images, as a reference value. A generator of the
            true distribution has a smaller distance to all real images. None where it was not measured.
        scores: Models that score the samples for their prompts, by the name of the metric.
        resize: The side in pixels to which samples are resized before features are taken. None for their own.
    """

    extractor: Extractor | None
    real: Reference | None
    metrics: frozenset[str] = frozenset({"frechet", "label_agreement"})
    halves: float | None = None
    scores: Mapping[str, TextScores] = field(default_factory=dict)
    resize: int | None = None

    @classmethod
    def fit(cls, data: str, images: Tensor, labels: Tensor | None = None, components: int = COMPONENTS) -> Protocol:
        """Return the protocol whose extractor is fitted to the real images: their principal components.

        Images are clamped to [-1, 1], as in an image file. They are not rounded to 8 bits, because a data set may have
        fewer grey levels than that (digits have 17).

        Args:
            data: The name of the data set.
            images: All real images [N, C, H, W] in [-1, 1].
            labels: Their labels, integers [N], to which a support vector machine is fitted.
            components: The number of components.

        Raises:
            UserError: Components.fit refuses the images, the labels or the number of components.
        """
        extractor = Components.fit(images, labels, components)
        return cls.of(data, extractor, extractor.extract(images).features)

    @classmethod
    def of(cls, data: str, extractor: Extractor, features: Tensor) -> Protocol:
        """Return the protocol of a small extractor, with the distance between halves of the real images.

        Args:
            data: The name of the data set.
            extractor: The extractor.
            features: Its features of all real images, [N, D].

        Raises:
            UserError: There are fewer than 4 real images.
        """
        if len(features) < 4:
            raise UserError(f"real images: {len(features)} given, expected at least 4, so that they can be halved")
        real = Reference(data, Moments.of(features), len(features), features.cpu())
        return cls(extractor, real, halves=_halves(features))

    @property
    def name(self) -> str:
        """The name to print beside a distance, with extractor and real data: `pca48(digits, 1797 real)`."""
        size = "" if self.resize is None else f"@{self.resize}"
        features = [] if self.extractor is None else [f"{self.extractor.name}{size}({self.real})"]
        return " + ".join([*features, *(judge.name for judge in self.scores.values())])

    def __str__(self) -> str:
        return self.name

    def to(self, device: torch.device | str) -> Protocol:
        """Return the protocol with its networks on a device, to which they are moved."""
        if self.extractor is not None:
            self.extractor.to(torch.device(device))
        return replace(self, scores={name: judge.to(device) for name, judge in self.scores.items()})

    def tally(
        self,
        images: Tensor,
        numbers: Tensor,
        count: int,
        labels: Tensor | None = None,
        texts: Sequence[str] = (),
    ) -> Tally:
        """Return the statistics of some samples of an evaluation. `report` turns their union into numbers.

        Args:
            images: The samples [N, C, *spatial].
            numbers: Their numbers in the evaluation, int64 [N] on the CPU. Those from `count` on do not count.
            count: The number of samples of the evaluation.
            labels: The labels [N] that they should show, integers.
            texts: Their N prompts, for the scores.

        Raises:
            UserError: The extractor refuses the images, or a label is not among its labels.
        """
        found, judged, extractor = None, None, self.extractor
        if extractor is not None:
            if labels is not None and "label_agreement" in self.metrics and extractor.labels is not None:
                judged = self._known(labels, len(images))
            seen = images if self.resize is None else resized(images, self.resize)
            found = extractor.extract(seen, labelled=judged is not None)
        scores = {name: judge.score(images, texts or [""] * len(images)).each for name, judge in self.scores.items()}
        return Tally.of(found, numbers, count, judged, scores, keep=bool(self.metrics & FROM_FEATURES))

    def report(self, samples: Tensor | Tally, labels: Tensor | None = None) -> dict[str, float | int | str]:
        """Return the numbers of samples by metric, with `protocol` and `samples`.

        Args:
            samples: Images [N, C, *spatial], or the union of the statistics of all samples.
            labels: The labels [N] that the images should show. None with statistics.

        Raises:
            UserError: `tally` refuses the images, there are too few, or features are not finite.
        """
        if isinstance(samples, Tally):
            tally = samples
        else:
            tally = self.tally(samples, torch.arange(len(samples)), len(samples), labels)
        count, wanted = tally.count, self.metrics
        numbers: dict[str, float | int | str] = {name: total / count for name, total in tally.totals.items()}
        if tally.moments is not None:
            numbers["frechet"] = self.distance(tally.moments)
        if tally.predictions is not None and "inception_score" in wanted:
            numbers["inception_score"] = tally.predictions.score()[0]
        if tally.features and wanted & FROM_FEATURES:
            assert self.real is not None and self.real.features is not None
            features = torch.cat(tally.features)[:count]
            if "kid" in wanted:
                numbers["kid"] = kernel_distance(features, self.real.features)[0]
            if wanted & {"precision", "recall"}:
                both = dict(zip(("precision", "recall"), precision_recall(features, self.real.features), strict=True))
                numbers |= {name: value for name, value in both.items() if name in wanted}
        if tally.labelled:
            numbers["label_agreement"] = tally.agreeing / tally.labelled
        return {**numbers, "protocol": self.name, "samples": count}

    def features(self, images: Tensor) -> Tensor:
        """Return the features [N, D] of images [N, C, *spatial].

        Raises:
            UserError: The extractor refuses the images.
        """
        assert self.extractor is not None
        return self.extractor.extract(images).features

    def distance(self, images: Tensor | Moments) -> float:
        """Return the squared Frechet distance to the real images.

        Args:
            images: Images [N, C, H, W], or the moments of their features.

        Raises:
            UserError: The extractor refuses the images, or there are fewer than 2.
        """
        moments = images if isinstance(images, Moments) else Moments.of(self.features(images))
        assert self.real is not None
        return frechet_distance(moments, self.real.moments)

    def agreement(self, images: Tensor, labels: Tensor) -> float:
        """Return the share of images, in [0, 1], whose predicted label is the given one.

        Args:
            images: Images [N, C, H, W].
            labels: The labels [N] that they should show.

        Raises:
            UserError: The extractor has no labels, a label is not among its labels, or there are no images.
        """
        if self.extractor is None or self.extractor.labels is None:
            raise UserError(f"label agreement: {self.name} was fitted without labels, expected real labels")
        wanted = self._known(labels, len(images))
        require(len(images) > 0, "label agreement: 0 images given, expected at least 1")
        predicted = self.extractor.extract(images, labelled=True).predicted
        assert predicted is not None
        return float((predicted == wanted).double().mean())

    def _known(self, labels: Tensor, count: int) -> Tensor:
        """Return labels, int64 [N] on the CPU, or raise UserError if one is not among those of the extractor."""
        assert self.extractor is not None and self.extractor.labels is not None
        wanted, known = checked_labels(labels, count), self.extractor.labels.tolist()
        if unknown := sorted(set(wanted.tolist()) - set(known)):
            raise UserError(f"labels: {unknown[0]} given, expected one of the real labels {_listed(known)}")
        return wanted


def allowed_metrics(extractor: Extractor, real: Reference, samples: int) -> frozenset[str]:
    """Return the metrics that a protocol can measure.

    Args:
        extractor: The extractor. The Inception Score needs its logits, and label agreement its labels.
        real: The real images. KID, precision and recall need their features.
        samples: The number of samples. KID needs as many as a subset has, precision and recall more than NEIGHBOURS.
    """
    allowed = {"frechet"}
    if extractor.labels is not None:
        allowed.add("label_agreement")
    if extractor.logits:
        allowed.add("inception_score")
    if real.features is not None:
        fewest = min(samples, len(real.features))
        allowed |= {"kid"} if fewest >= SUBSET else set()
        allowed |= {"precision", "recall"} if fewest > NEIGHBOURS else set()
    return frozenset(allowed)


def better(name: str, value: float, than: float | None) -> bool:
    """Return whether a metric's value is better than another, which is None if there is none yet. NaN is the worst."""
    if than is None or math.isnan(than):
        return than is None or not math.isnan(value)
    return value < than if name in SMALLER_IS_BETTER else value > than


def _halves(features: Tensor) -> float:
    """Return the mean Frechet distance between random halves of `features` [N, D], over fixed splits."""
    total = 0.0
    for seed in range(_SPLITS):
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
        first, second = features[order].tensor_split(2)
        total += frechet_distance(Moments.of(first), Moments.of(second))
    return total / _SPLITS


def _listed(labels: list[int]) -> str:
    """Return labels for a message: up to ten in full, and more as the first and the last."""
    return ", ".join(map(str, labels)) if len(labels) <= 10 else f"{labels[0]} ... {labels[-1]}"
