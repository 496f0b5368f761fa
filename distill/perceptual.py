"""How far an image is from the one it should be, for losses on pairs: recipes name the keys of PERCEPTUALS.

The published weights of such losses are for LPIPS (arXiv:1801.03924), which is a download: docs/objectives/dmd.md says
how a recipe names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from distill.annotations import LocalPath
from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.metrics import Classifier


@dataclass(frozen=True)
class Perceptual:
    """A distance of two images, a mean over elements or features: its size does not grow with the resolution."""

    def network(self) -> nn.Module:
        """The frozen network that `distance` gets, if it needs one."""
        return nn.Identity()

    def distance(self, made: Tensor, target: Tensor, network: nn.Module) -> Tensor:
        """[P] for images [P, C, H, W] in [-1, 1], differentiable in `made`."""
        raise NotImplementedError

    def check(self, teacher: Denoiser) -> None:
        """Raise UserError when it cannot judge the teacher's samples."""


@dataclass(frozen=True)
class MSE(Perceptual):
    """The mean square of the difference."""

    def distance(self, made: Tensor, target: Tensor, network: nn.Module) -> Tensor:
        return ((made - target) ** 2).flatten(1).mean(1)


@dataclass(frozen=True)
class L1(Perceptual):
    """The mean absolute difference."""

    def distance(self, made: Tensor, target: Tensor, network: nn.Module) -> Tensor:
        return (made - target).abs().flatten(1).mean(1)


@dataclass(frozen=True)
class PseudoHuberDistance(Perceptual):
    """sqrt(mean square + c^2) - c: consistency training's instead of LPIPS (arXiv:2310.14189, there of sums and with
    c sqrt(N) for N elements, which is this times sqrt(N))."""

    c: float = 0.00054  # unverified

    def __post_init__(self) -> None:
        if not self.c > 0:
            raise UserError(f"c: must be positive, got {self.c}")

    def distance(self, made: Tensor, target: Tensor, network: nn.Module) -> Tensor:
        return (((made - target) ** 2).flatten(1).mean(1) + self.c**2).sqrt() - self.c


@dataclass(frozen=True)
class Features(Perceptual):
    """The mean square of the difference in the features of the classifier in `folder` (`distill classifier`)."""

    folder: LocalPath

    def network(self) -> Classifier:
        return Classifier.load(self.folder)

    def distance(self, made: Tensor, target: Tensor, network: nn.Module) -> Tensor:
        features = cast(Classifier, network).features
        return ((features(made) - features(target)) ** 2).mean(1)

    def check(self, teacher: Denoiser) -> None:
        ours, theirs = self.network().shape, teacher.network.shape
        if theirs and theirs != ours:
            raise UserError(f"perceptual: the classifier '{self.folder}' sees {ours}, the teacher makes {theirs}")


PERCEPTUALS: dict[str, type[Perceptual]] = {
    "mse": MSE,
    "l1": L1,
    "pseudo_huber": PseudoHuberDistance,
    "classifier": Features,
}
