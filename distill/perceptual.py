"""Distances between a generated image and its target, for losses on pairs.

Recipes name them by the keys of PERCEPTUALS. The published weights of such losses are for LPIPS (arXiv:1801.03924),
whose network must be downloaded. docs/objectives/dmd.md says how a recipe names it.
"""

from dataclasses import dataclass, field
from typing import cast

from torch import Tensor, nn

from distill.annotations import LocalPath
from distill.denoiser import Denoiser
from distill.encoders.protocols import Autoencoder
from distill.errors import UserError, require
from distill.metrics import Classifier


@dataclass(frozen=True)
class Perceptual:
    """A distance of two images. It is a mean over elements or features, so it does not grow with the resolution.

    Attributes:
        decoded: Whether latents are decoded to images before they are compared.
    """

    decoded: bool = field(default=False, kw_only=True)

    def network(self) -> nn.Module:
        """Return the frozen network that `distance` takes. A distance that needs none returns nn.Identity."""
        return nn.Identity()

    def distance(self, made: Tensor, target: Tensor, network: nn.Module) -> Tensor:
        """Return the distances of pairs of images, with a graph into `made`.

        Args:
            made: Generated images [P, C, H, W] in [-1, 1].
            target: The images [P, C, H, W] in [-1, 1] that they should be.
            network: The network that the method `network` returned, on their device.

        Returns:
            The distances [P].
        """
        raise NotImplementedError

    def of_samples(
        self, made: Tensor, target: Tensor, network: nn.Module, autoencoder: Autoencoder | None = None
    ) -> Tensor:
        """Return the distances [P] of samples [P, C, *spatial] of a teacher, with a graph into `made`.

        Args:
            made: Generated samples.
            target: The samples that they should be.
            network: The network that the method `network` returned, on their device.
            autoencoder: The teacher's, which decodes them where `decoded` is true.
        """
        if self.decoded:
            assert autoencoder is not None
            made, target = autoencoder.decode(made, graph=True), autoencoder.decode(target)
        return self.distance(made, target, network)

    def check(self, teacher: Denoiser) -> None:
        """Raise UserError when the distance cannot take the teacher's samples."""
        if self.decoded and teacher.network.autoencoder is None:
            raise UserError("perceptual.decoded: the teacher has no autoencoder; leave it out")


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
    """The distance sqrt(mean square + c^2) - c, which consistency training uses in place of LPIPS (arXiv:2310.14189).

    The paper has the sum of squares over the N elements, and c sqrt(N). Its distance is this one times sqrt(N).

    Attributes:
        c: The constant c.
    """

    c: float = 0.00054  # unverified

    def __post_init__(self) -> None:
        require(self.c > 0, f"c: must be positive, got {self.c}")

    def distance(self, made: Tensor, target: Tensor, network: nn.Module) -> Tensor:
        return (((made - target) ** 2).flatten(1).mean(1) + self.c**2).sqrt() - self.c


@dataclass(frozen=True)
class Features(Perceptual):
    """The mean square of the difference of a classifier's features.

    Attributes:
        folder: The folder of the classifier, which `distill classifier` writes.
    """

    folder: LocalPath

    def network(self) -> Classifier:
        return Classifier.load(self.folder)

    def distance(self, made: Tensor, target: Tensor, network: nn.Module) -> Tensor:
        features = cast(Classifier, network).features
        return ((features(made) - features(target)) ** 2).mean(1)

    def check(self, teacher: Denoiser) -> None:
        super().check(teacher)
        ours, theirs = self.network().shape, teacher.image_shape if self.decoded else teacher.network.shape
        if theirs and theirs != ours:
            raise UserError(f"perceptual: the classifier '{self.folder}' sees {ours}, the teacher makes {theirs}")


PERCEPTUALS: dict[str, type[Perceptual]] = {
    "mse": MSE,
    "l1": L1,
    "pseudo_huber": PseudoHuberDistance,
    "classifier": Features,
}
"""The distances by their names in recipes."""
