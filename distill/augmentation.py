"""EDM's augmentation of training images: flips and geometric transformations that a network is told of by labels."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample, pad

from distill.compilation import fused
from distill.denoiser import Denoiser
from distill.errors import UserError, require
from distill.random import Random, to_device

LABELS = 9
"""The numbers that describe the transformation of an image, in the order in which EDM's networks take them."""
SCALE_STD, ANISO_STD = 0.2, 0.2
"""The standard deviations of log2 of the scales."""
TRANSLATION_STD = 0.125
"""The standard deviation of a translation, in sides of the image."""
# The low-pass filter of the symlet with 6 vanishing moments (Daubechies 1992). Its even autocorrelation is that of an
# impulse, so that an image that is filtered up and down again without a transformation stays as it is.
SYMLET = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
EDGE = len(SYMLET) // 4
"""The pixels at each edge that are computed and then cut off, since the filter reaches over the edge there."""


class Transformation(NamedTuple):
    """The transformation of each image of a batch, as plain numbers.

    Attributes:
        flips: Whether an image is mirrored left to right, and top to bottom, [B, 2], 0 or 1.
        scale: log2 of the isotropic scale, in units of its standard deviation, [B].
        angle: The rotation in radians, [B].
        aniso: log2 of the scale along one axis, which is that of 1 / scale across it, in units of its standard
            deviation, [B].
        axis: The direction of this axis in radians, [B].
        shift: The translation in x and y, in units of its standard deviation, [B, 2].
    """

    flips: Tensor
    scale: Tensor
    angle: Tensor
    aniso: Tensor
    axis: Tensor
    shift: Tensor

    def labels(self) -> Tensor:
        """Return the labels [B, LABELS] that EDM's networks take. A row of zeros stands for no transformation."""
        columns = (
            *self.flips.unbind(1),
            self.scale,
            self.angle.cos() - 1,
            self.angle.sin(),
            self.aniso * self.axis.cos(),
            self.aniso * self.axis.sin(),
            *self.shift.unbind(1),
        )
        return torch.stack(columns, 1)

    def sources(self, height: int, width: int) -> Tensor:
        """Return the matrices [B, 3, 3] that map a pixel to its source, both in pixels from the centre."""
        zoom, stretch = (-SCALE_STD * self.scale).exp2(), (-ANISO_STD * self.aniso).exp2()
        sides = TRANSLATION_STD * torch.tensor([width, height]).to(self.shift)
        return (
            _linear(zoom, torch.zeros_like(zoom), torch.zeros_like(zoom), zoom)
            @ _rotation(self.angle)
            @ _rotation(-self.axis)
            @ _linear(stretch, torch.zeros_like(stretch), torch.zeros_like(stretch), 1 / stretch)
            @ _rotation(self.axis)
            @ _translation(-self.shift * sides)
        )


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """EDM's augmentation of images (Karras et al., arXiv:2206.00364, appendix F.2; arXiv:2006.06676, appendix B).

    Half of the images are mirrored left to right. Each of these transformations is done with the probability given:

    - a mirror image, top to bottom, of half of the images
    - a scale of 2^N(0, 0.2^2)
    - a rotation by any angle
    - a scale of 2^N(0, 0.2^2) along an axis, and its inverse across it. The axis is that of x, or half of the time any
    - a translation by N(0, 0.125^2) sides

    Attributes:
        probability: The probability of each transformation.
    """

    probability: float

    def __post_init__(self) -> None:
        require(0 < self.probability <= 1, f"probability: must be in (0, 1], got {self.probability}")

    def check(self, teacher: Denoiser) -> None:
        """Raise UserError when the network of a teacher takes no labels of this augmentation."""
        if getattr(teacher.network, "augment_dim", 0) != LABELS:
            raise UserError(
                "augmentation: the teacher's network takes no labels of it, as EDM's take; leave augmentation out"
            )

    def draw(self, random: Random) -> Transformation:
        """Draw a transformation for each sample, float64, on the device of the keys."""
        u = random.uniform(14)
        chosen = (u[:, :5] < self.probability).double()
        normal, turns = torch.special.ndtri(u[:, 5:9]), math.pi * (2 * u[:, 9:11] - 1)
        mirrored = u[:, 11:].round()
        return Transformation(
            flips=torch.stack([mirrored[:, 0], chosen[:, 0] * mirrored[:, 1]], 1),
            scale=chosen[:, 1] * normal[:, 0],
            angle=chosen[:, 2] * turns[:, 0],
            aniso=chosen[:, 3] * normal[:, 1],
            axis=mirrored[:, 2] * turns[:, 1],
            shift=chosen[:, 4:] * normal[:, 2:],
        )

    def __call__(self, images: Tensor, random: Random) -> tuple[Tensor, Tensor]:
        """Return the images transformed, and the labels of their transformations.

        Args:
            images: Images [B, C, H, W].
            random: The random numbers of the samples.

        Returns:
            The images [B, C, H, W] and the labels [B, LABELS], in their dtype.
        """
        drawn = self.draw(random)
        return transform(images, drawn), to_device(drawn.labels(), images.device, images.dtype)


def transform(images: Tensor, drawn: Transformation) -> Tensor:
    """Return images [B, C, H, W] after their transformations. Beyond its edges an image goes on as its mirror image."""
    height, width = images.shape[2:]
    theta = to_device(drawn.sources(height, width)[:, :2], images.device, images.dtype)
    flips = to_device(drawn.flips, images.device, images.dtype)
    return _warp(images, flips, theta)


@fused
def _warp(images: Tensor, flips: Tensor, sources: Tensor) -> Tensor:
    """Return images [B, C, H, W] that are mirrored by `flips` [B, 2] and then taken from `sources` [B, 2, 3].

    The image is padded by its mirror image as far as that goes, whatever the transformation, so that a sample does not
    depend on the others of its batch. It is then filtered up to twice its size, sampled, and filtered down.
    """
    channels, height, width = images.shape[1:]
    across, down = (flips[:, place, None, None, None] for place in (0, 1))
    images = torch.where(across > 0, images.flip(3), images)
    images = torch.where(down > 0, images.flip(2), images)
    images = pad(images, [width - 1, width - 1, height - 1, height - 1], mode="reflect")
    low_pass = torch.tensor(SYMLET).to(images)
    for axis in (3, 2):
        images = _doubled(images, low_pass.flip(0), axis)
    sides = torch.tensor([width, height]).to(images)
    outer = 2 * (sides + 2 * EDGE)
    inner = torch.tensor([images.shape[3], images.shape[2]]).to(images)
    # A pixel v of the doubled grid is at q = (v + 1/2) / 2, is taken from p, and lies at 2 p - 1/2 there. The sampler
    # counts both from -1 to 1.
    matrix, offset = sources[:, :, :2], sources[:, :, 2]
    offset = matrix.sum(2) / 2 + 2 * offset - 0.5
    theta = torch.cat([matrix * (outer / 2)[None, None], offset[:, :, None]], 2) * (2 / inner)[None, :, None]
    size = [len(images), channels, 2 * (height + 2 * EDGE), 2 * (width + 2 * EDGE)]
    images = grid_sample(images, affine_grid(theta, size, align_corners=False), align_corners=False)
    for axis in (3, 2):
        images = _halved(images, low_pass, axis)
    return images


def _doubled(images: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """Return images with twice the size along an axis: zeros between the pixels, filtered."""
    spread = torch.stack([images, torch.zeros_like(images)], axis + 1).flatten(axis, axis + 1)
    return _filtered(spread.narrow(axis, 0, spread.shape[axis] - 1), kernel, axis, 1, (len(kernel) + 1) // 2)


def _halved(images: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """Return images with half the size along an axis, without EDGE pixels at both ends."""
    half = _filtered(images, kernel, axis, 2, (len(kernel) - 1) // 2)
    return half.narrow(axis, EDGE, half.shape[axis] - 2 * EDGE)


def _filtered(images: Tensor, kernel: Tensor, axis: int, stride: int, padding: int) -> Tensor:
    """Return images [B, C, H, W] whose channels are each filtered along an axis."""
    rows = axis == 2
    shape = (len(kernel), 1) if rows else (1, len(kernel))
    weight = kernel.reshape(1, 1, *shape).expand(images.shape[1], 1, *shape)
    pair = (stride, 1) if rows else (1, stride)
    pads = (padding, 0) if rows else (0, padding)
    return conv2d(images, weight, stride=pair, padding=pads, groups=images.shape[1])


def _linear(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Return the matrices [B, 3, 3] of the linear maps (a b; c d)."""
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    return torch.stack([a, b, zero, c, d, zero, zero, zero, one], 1).reshape(-1, 3, 3)


def _rotation(angle: Tensor) -> Tensor:
    """Return the matrices [B, 3, 3] of rotations by angles [B]."""
    return _linear(angle.cos(), -angle.sin(), angle.sin(), angle.cos())


def _translation(shift: Tensor) -> Tensor:
    """Return the matrices [B, 3, 3] of translations by `shift` [B, 2]."""
    matrix = torch.eye(3).to(shift).repeat(len(shift), 1, 1)
    matrix[:, :2, 2] = shift
    return matrix
