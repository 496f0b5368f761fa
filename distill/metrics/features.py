"""The features that recipes name, and the published protocols: features with a number of samples."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass

from distill.annotations import LocalPath
from distill.errors import UserError
from distill.metrics.dinov2 import DINOV2_LARGE, DINOv2
from distill.metrics.extractor import Extractor
from distill.metrics.inception import Inception, Resize


class FeatureSettings(ABC):
    """The settings of an extractor of features. A recipe chooses one by its name, or a class of the user's own.

    A class of the user's own is a dataclass whose `load` returns an `Extractor`.
    """

    @abstractmethod
    def load(self) -> Extractor:
        """Return the extractor.

        Raises:
            UserError: What it needs is missing or damaged.
        """


@dataclass(frozen=True)
class InceptionFeatures(FeatureSettings):
    """The 2,048 features of the Inception network of 2015, as TensorFlow's FID, EDM and StyleGAN have them."""

    weights: LocalPath | None = None  # a .pth or .safetensors file; null: the published ones, where torch keeps them

    def load(self) -> Extractor:
        return Inception(self.weights, *self._kind())

    def _kind(self) -> tuple[Resize, str]:
        """Return the way of resizing, and the name of the protocol."""
        return "tensorflow", "fid"


@dataclass(frozen=True)
class CleanInceptionFeatures(InceptionFeatures):
    """The features of `InceptionFeatures` of images that clean-fid resizes (arXiv:2104.11222)."""

    def _kind(self) -> tuple[Resize, str]:
        return "clean", "clean_fid"


@dataclass(frozen=True)
class DINOv2Features(FeatureSettings):
    """The features of DINOv2, as EDM2 has them (arXiv:2312.02696)."""

    model: str = DINOV2_LARGE  # a folder, or an id of the Hugging Face hub

    def load(self) -> Extractor:
        return DINOv2(self.model)


FEATURES: dict[str, type[FeatureSettings]] = {
    "fid": InceptionFeatures,
    "clean_fid": CleanInceptionFeatures,
    "fd_dinov2": DINOv2Features,
}
"""The features that recipes name."""
_PUBLISHED = re.compile(r"(fid|clean_fid|fd_dinov2_)([1-9]\d{0,6})(k?)")


def read_protocol(name: str) -> tuple[FeatureSettings, int]:
    """Return the features and the number of samples of a published protocol.

    Args:
        name: `fid50k`, `clean_fid50k` or `fd_dinov2_50k`, with any number of samples.

    Raises:
        UserError: It is no such name.
    """
    found = _PUBLISHED.fullmatch(name)
    if found is None:
        raise UserError(f"protocol: must be fid50k, clean_fid50k or fd_dinov2_50k, or such a name, got {name!r}")
    features, count, thousands = found.groups()
    return FEATURES[features.rstrip("_")](), int(count) * (1_000 if thousands else 1)
