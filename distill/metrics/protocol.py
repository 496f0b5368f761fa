"""The protocol of an evaluation: a named, deterministic comparison of generated images with real ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.errors import UserError, require
from distill.metrics.extractor import COMPONENTS, Components, Extractor
from distill.metrics.frechet import Moments, frechet_distance
from distill.metrics.images import checked_images, checked_labels

_SPLITS = 10  # random halvings, with the seeds 0 to 9


@dataclass(frozen=True, eq=False)
class Protocol:
    """The Frechet distance between features of generated and real images, and the agreement with predicted labels.

    Distances can be compared only under the same name of the protocol and for the same number of samples. Images
    [N, C, H, W] are clamped to [-1, 1], as in an image file. They are not rounded to 8 bits, because a data set may
    have fewer grey levels than that (digits have 17). Moments and distances are computed in float64 on the CPU.

    Attributes:
        data: The name of the data set.
        extractor: The extractor of features and labels.
        real: The moments of the features of all real images.
        halves: The mean distance between random halves of the real images, as a reference value. A generator of the
            true distribution has a smaller distance to all real images.
    """

    data: str
    extractor: Extractor
    real: Moments
    halves: float

    @classmethod
    def fit(cls, data: str, images: Tensor, labels: Tensor | None = None, components: int = COMPONENTS) -> Protocol:
        """Return the protocol whose extractor is fitted to the real images: their principal components.

        Args:
            data: The name of the data set.
            images: All real images [N, C, H, W] in [-1, 1].
            labels: Their labels, integers [N], to which a support vector machine is fitted.
            components: The number of components.

        Raises:
            UserError: Components.fit refuses the images, the labels or the number of components.
        """
        extractor = Components.fit(images, labels, components)
        return cls.of(data, extractor, extractor.features(checked_images(images, extractor.shape)))

    @classmethod
    def of(cls, data: str, extractor: Extractor, features: Tensor) -> Protocol:
        """Return the protocol of an extractor.

        Args:
            data: The name of the data set.
            extractor: The extractor.
            features: Its features of all real images, float64 [N, D].

        Raises:
            UserError: There are fewer than 4 real images.
        """
        if len(features) < 4:
            raise UserError(f"real images: {len(features)} given, expected at least 4, so that they can be halved")
        return cls(data, extractor, Moments.of(features), _halves(features))

    @property
    def name(self) -> str:
        """The name to print beside a distance, with extractor and real data: `pca48(digits, 1797 real)`."""
        return f"{self.extractor.name}({self.data}, {self.real.count} real)"

    def __str__(self) -> str:
        return self.name

    def features(self, images: Tensor) -> Tensor:
        """Return the features of images.

        For sets that do not fit into memory, merge `Moments.of(protocol.features(part))` over the parts and give the
        result to `distance`.

        Args:
            images: Images [N, C, H, W], which are clamped to [-1, 1].

        Returns:
            The features, float64 [N, D] on the CPU.

        Raises:
            UserError: The shape is not that of the real images, or values are integers, NaN or infinite.
        """
        return self.extractor.features(checked_images(images, self.extractor.shape))

    def distance(self, images: Tensor | Moments) -> float:
        """Return the squared Frechet distance to all real images.

        Args:
            images: Images [N, C, H, W], or the moments of their features.

        Raises:
            UserError: `features` refuses the images, or there are fewer than 2.
        """
        moments = images if isinstance(images, Moments) else Moments.of(self.features(images))
        return frechet_distance(moments, self.real)

    def agreement(self, images: Tensor, labels: Tensor) -> float:
        """Return the share of images, in [0, 1], whose predicted label is the given one.

        Args:
            images: Images [N, C, H, W].
            labels: The labels [N] that they should show.

        Raises:
            UserError: The extractor has no labels, a label is not among its labels, or there are no images.
        """
        if self.extractor.labels is None:
            raise UserError(f"label agreement: {self.name} was fitted without labels, expected real labels")
        wanted, known = checked_labels(labels, len(images)), self.extractor.labels.tolist()
        if unknown := sorted(set(wanted.tolist()) - set(known)):
            raise UserError(f"labels: {unknown[0]} given, expected one of the real labels {_listed(known)}")
        pixels = checked_images(images, self.extractor.shape)
        require(len(pixels) > 0, "label agreement: 0 images given, expected at least 1")
        return float((self.extractor.predict(pixels) == wanted).double().mean())

    def report(self, images: Tensor, labels: Tensor | None = None) -> dict[str, float | int | str]:
        """Return `frechet`, `protocol` and `samples` of images, and `label_agreement` where there are labels.

        Args:
            images: Images [N, C, H, W].
            labels: The labels [N] that they should show.
        """
        numbers: dict[str, float | int | str] = {"frechet": self.distance(images)}
        if labels is not None:
            numbers["label_agreement"] = self.agreement(images, labels)
        return {**numbers, "protocol": self.name, "samples": len(images)}


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
