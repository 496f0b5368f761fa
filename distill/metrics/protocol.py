"""A named, deterministic way to turn images into numbers, and to compare them with the real ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.errors import UserError
from distill.metrics.extractor import COMPONENTS, Components, Extractor
from distill.metrics.frechet import Moments, frechet_distance
from distill.metrics.images import checked_images, checked_labels

_SPLITS = 10  # seeds 0..9


@dataclass(frozen=True, eq=False)
class Protocol:
    """Frechet distance between the features of an extractor, and agreement with the labels it gives.

    Images [N, C, H, W] are clamped to [-1, 1], as a saved image would be, but not quantised to 8 bits: a data set may
    have fewer grey levels than that (digits have 17). Moments and distances are computed in float64 on the CPU,
    whatever the images' device and floating type. Distances compare only under the same protocol name and number of
    samples.

    `real` holds the moments of all real features of the data set `data`. `halves` is the real-against-real floor: the
    mean distance between random halves of the real images. A generator of the true distribution, compared with all
    real images, falls below it.
    """

    data: str
    extractor: Extractor
    real: Moments
    halves: float

    @classmethod
    def fit(cls, data: str, images: Tensor, labels: Tensor | None = None, components: int = COMPONENTS) -> Protocol:
        """The protocol of the real `images` [N, C, H, W] in [-1, 1] alone: their principal components.

        With `labels` [N], agreement is that with a support vector machine. Raises UserError as `Components.fit` does.
        """
        extractor = Components.fit(images, labels, components)
        return cls.of(data, extractor, extractor.features(checked_images(images, extractor.shape)))

    @classmethod
    def of(cls, data: str, extractor: Extractor, features: Tensor) -> Protocol:
        """The protocol of `extractor`, whose float64 `features` [N, D] of all real images were taken beforehand."""
        if len(features) < 4:
            raise UserError(f"real images: {len(features)} given, expected at least 4, so that they can be halved")
        return cls(data, extractor, Moments.of(features), _halves(features))

    @property
    def name(self) -> str:
        """What defines the distance, to be printed beside it: `pca48(digits, 1797 real)`."""
        return f"{self.extractor.name}({self.data}, {self.real.count} real)"

    def __str__(self) -> str:
        return self.name

    def features(self, images: Tensor) -> Tensor:
        """Float64 [N, D] features of `images` [N, C, H, W], clamped to [-1, 1].

        For sets too large to hold, merge `Moments.of(protocol.features(part))` and hand the result to `distance`.
        Raises UserError when the shape is not that of the real images, or for NaN, infinity and integers.
        """
        return self.extractor.features(checked_images(images, self.extractor.shape))

    def distance(self, images: Tensor | Moments) -> float:
        """Frechet distance of `images` [N, C, H, W], or of the moments of their features, to all real images."""
        moments = images if isinstance(images, Moments) else Moments.of(self.features(images))
        return frechet_distance(moments, self.real)

    def agreement(self, images: Tensor, labels: Tensor) -> float:
        """Fraction in [0, 1] of `images` [N, C, H, W] that the extractor gives their label in `labels` [N].

        Raises UserError when it was fitted without labels or a label is not among those it tells apart.
        """
        if self.extractor.labels is None:
            raise UserError(f"label agreement: {self.name} was fitted without labels, expected real labels")
        wanted, known = checked_labels(labels, len(images)), self.extractor.labels.tolist()
        if unknown := sorted(set(wanted.tolist()) - set(known)):
            raise UserError(f"labels: {unknown[0]} given, expected one of the real labels {_listed(known)}")
        pixels = checked_images(images, self.extractor.shape)
        if not len(pixels):
            raise UserError("label agreement: 0 images given, expected at least 1")
        return float((self.extractor.predict(pixels) == wanted).double().mean())

    def report(self, images: Tensor, labels: Tensor | None = None) -> dict[str, float | int | str]:
        """`frechet` and, with `labels` [N], `label_agreement` of `images` [N, C, H, W]; `protocol` and `samples`."""
        numbers: dict[str, float | int | str] = {"frechet": self.distance(images)}
        if labels is not None:
            numbers["label_agreement"] = self.agreement(images, labels)
        return {**numbers, "protocol": self.name, "samples": len(images)}


def _halves(features: Tensor) -> float:
    """Mean Frechet distance between random halves of `features` [N, D] over fixed splits."""
    total = 0.0
    for seed in range(_SPLITS):
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
        first, second = features[order].tensor_split(2)
        total += frechet_distance(Moments.of(first), Moments.of(second))
    return total / _SPLITS


def _listed(labels: list[int]) -> str:
    """Few labels in full, many as their ends."""
    return ", ".join(map(str, labels)) if len(labels) <= 10 else f"{labels[0]} ... {labels[-1]}"
