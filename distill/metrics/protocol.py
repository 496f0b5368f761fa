"""A named, deterministic way to turn images into numbers, fitted on the real images alone: no pretrained network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.errors import UserError
from distill.metrics.frechet import Moments, frechet_distance

# Chosen on the 8x8 digits, a defect on one half of the data against the clean other half, as multiples of `halves`
# (16 / 32 / 48 / 64 components): blur 7.7 / 6.6 / 6.1 / 6.1, noise of 0.2 1.4 / 1.4 / 1.6 / 2.5, classes 3:1 out of
# balance 4.5 / 3.5 / 3.2 / 3.2. 48 has the best worst ratio of those whose real covariance is not degenerate (condition
# 190; 64 is singular, 61 has 4e5), holds 99.9 % of the variance, and its distances vary least from split to split.
_COMPONENTS = 48
_SPLITS = 10  # seeds 0..9
_TAUGHT = 5_000  # images the classifier is fitted on: its time grows with their square
_RANGE = 1 + 1e-4


@dataclass(frozen=True, eq=False)
class Protocol:
    """Frechet distance on the real images' principal components, and agreement with a classifier of the real images.

    Images [N, C, H, W] are clamped to [-1, 1], as a saved image would be, but not quantised to 8 bits: a data set may
    have fewer grey levels than that (digits have 17). All numbers are computed in float64 on the CPU, whatever the
    images' device and floating type. Distances compare only under the same protocol name and number of samples.

    `shape` is (C, H, W); `centre` [D] and `basis` [D, K] project flattened images on K components, unwhitened; `real`
    holds the moments of all real features. `halves` is the real-against-real floor: the mean distance between random
    halves of the real images. A generator of the true distribution, compared with all real images, falls below it.
    """

    data: str
    shape: tuple[int, int, int]
    centre: Tensor
    basis: Tensor
    real: Moments
    halves: float
    classifier: Any | None

    @classmethod
    def fit(cls, name: str, images: Tensor, labels: Tensor | None = None, components: int = _COMPONENTS) -> Protocol:
        """The protocol of the real `images` [N, C, H, W] in [-1, 1] of the data set `name`, with `labels` [N] if any.

        Bit-identical from fit to fit on one machine. The components come from a D x D eigenproblem, D = C H W, so this
        is for small images. Raises UserError for other shapes or ranges, and for `components` beyond the directions
        the images span.
        """
        shape = _shape(images)
        if len(images) < 4:
            raise UserError(f"real images: {len(images)} given, expected at least 4, so that they can be halved")
        if float(images.abs().max()) > _RANGE:
            raise UserError(f"real images: values in {_span(images)} given, expected them within [-1, 1]")
        pixels = _pixels(images, shape)
        every = Moments.of(pixels)
        basis = _principal(every.covariance, components)
        features = (pixels - every.mean) @ basis
        classifier = None if labels is None else _classifier(pixels[:_TAUGHT], _labels(labels, len(images))[:_TAUGHT])
        return cls(name, shape, every.mean, basis, Moments.of(features), _halves(features), classifier)

    @property
    def name(self) -> str:
        """What defines the distance, to be printed beside it: `pca48(digits, 1797 real)`."""
        return f"pca{self.basis.shape[1]}({self.data}, {self.real.count} real)"

    def __str__(self) -> str:
        return self.name

    def features(self, images: Tensor) -> Tensor:
        """Float64 [N, K] principal components of `images` [N, C, H, W], clamped to [-1, 1].

        For sets too large to hold, merge `Moments.of(protocol.features(part))` and hand the result to `distance`.
        Raises UserError when the shape is not that of the real images, or for NaN, infinity and integers.
        """
        return (_pixels(images, self.shape) - self.centre) @ self.basis

    def distance(self, images: Tensor | Moments) -> float:
        """Frechet distance of `images` [N, C, H, W], or of the moments of their features, to all real images."""
        moments = images if isinstance(images, Moments) else Moments.of(self.features(images))
        return frechet_distance(moments, self.real)

    def agreement(self, images: Tensor, labels: Tensor) -> float:
        """Fraction in [0, 1] of `images` [N, C, H, W] that the classifier gives their label in `labels` [N].

        On digits the classifier is right on 99.0 % of held-out real images: the ceiling of a perfect generator.
        Raises UserError when the protocol was fitted without labels or a label is not among the real ones.
        """
        if self.classifier is None:
            raise UserError(f"label agreement: {self.name} was fitted without labels, expected real labels")
        wanted = _labels(labels, len(images))
        known = torch.from_numpy(self.classifier.classes_)
        if unknown := sorted(set(wanted.tolist()) - set(known.tolist())):
            raise UserError(f"labels: {unknown[0]} given, expected one of the real labels {_listed(known.tolist())}")
        pixels = _pixels(images, self.shape)
        if not len(pixels):
            raise UserError("label agreement: 0 images given, expected at least 1")
        predicted = torch.from_numpy(self.classifier.predict(pixels.numpy()))
        return float((predicted == wanted).double().mean())

    def report(self, images: Tensor, labels: Tensor | None = None) -> dict[str, float | int | str]:
        """`frechet` and, with `labels` [N], `label_agreement` of `images` [N, C, H, W]; `protocol` and `samples`."""
        numbers: dict[str, float | int | str] = {"frechet": self.distance(images)}
        if labels is not None:
            numbers["label_agreement"] = self.agreement(images, labels)
        return {**numbers, "protocol": self.name, "samples": len(images)}


def _principal(covariance: Tensor, components: int) -> Tensor:
    """The leading eigenvectors [D, components], each with its largest entry positive: eigh leaves the sign open."""
    values, vectors = torch.linalg.eigh(covariance)
    # Directions without variance are an arbitrary choice of eigh's: they would make the protocol depend on the machine.
    spanned = int((values > values[-1] * len(values) * torch.finfo(values.dtype).eps).sum())
    if not 1 <= components <= spanned:
        raise UserError(f"components: {components} given, expected 1 to {spanned}, the directions the real images span")
    basis: Tensor = vectors.flip(1)[:, :components]
    largest = basis.gather(0, basis.abs().argmax(dim=0, keepdim=True))
    return basis * largest.sign()


def _halves(features: Tensor) -> float:
    """Mean Frechet distance between random halves of `features` [N, K] over fixed splits."""
    total = 0.0
    for seed in range(_SPLITS):
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
        first, second = features[order].tensor_split(2)
        total += frechet_distance(Moments.of(first), Moments.of(second))
    return total / _SPLITS


def _classifier(pixels: Tensor, labels: Tensor) -> Any:
    """A support vector machine on `pixels` [N, D]; 99.0 % right on digits in shuffled 5-fold cross-validation."""
    from sklearn.svm import SVC

    if len(set(labels.tolist())) < 2:
        raise UserError("labels: 1 class given, expected at least 2, or no labels at all")
    return SVC(kernel="rbf", C=10.0, gamma="scale").fit(pixels.numpy(), labels.numpy())


def _shape(images: Tensor) -> tuple[int, int, int]:
    if images.ndim != 4:
        raise UserError(f"images: {list(images.shape)} given, expected [N, C, H, W]")
    _, channels, height, width = images.shape
    return channels, height, width


def _pixels(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Float64 [N, D] on the CPU, clamped to [-1, 1]; refuses what is not images of `shape`."""
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise UserError(f"images: {list(images.shape)} given, expected [N, {', '.join(map(str, shape))}]")
    if not images.is_floating_point():
        raise UserError(f"images: {images.dtype} given, expected floating point in [-1, 1]")
    pixels = images.detach().to("cpu", torch.float64).flatten(1)
    if broken := int((~pixels.isfinite()).any(dim=1).sum()):
        raise UserError(f"images: {broken} of {len(pixels)} hold NaN or infinity, expected finite values")
    return pixels.clamp(-1, 1)


def _labels(labels: Tensor, count: int) -> Tensor:
    """Int64 [N] on the CPU, one label an image."""
    if labels.shape != (count,) or labels.is_floating_point():
        raise UserError(f"labels: {labels.dtype} {list(labels.shape)} given, expected integers [{count}], one an image")
    return labels.detach().to("cpu", torch.int64)


def _span(images: Tensor) -> str:
    return f"[{float(images.min()):.4g}, {float(images.max()):.4g}]"


def _listed(labels: list[int]) -> str:
    """Few labels in full, many as their ends."""
    return ", ".join(map(str, labels)) if len(labels) <= 10 else f"{labels[0]} ... {labels[-1]}"
