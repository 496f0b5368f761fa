"""A discriminator on the features of the fake denoiser, and the losses of the two sides.

The fake's own encoder tells real from generated samples (SiDA, arXiv:2410.14919; DMD2, arXiv:2405.14867): a few more
parameters at most, and one pass gives denoising and judgement together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import softplus

from distill.conditions import ConditionLike
from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.paths import Path
from distill.random import Random
from distill.times import Times

Want: TypeAlias = Literal["x0", "logits", "both"]
CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
"""By the number of spatial dimensions."""


class ChannelMean(nn.Module):
    """Logits [B, *spatial]: the mean of the features [B, C, *spatial] over channels, without a parameter (SiDA)."""

    def forward(self, features: Tensor) -> Tensor:
        return features.mean(1)


class ConvHead(nn.Module):
    """One logit a sample, [B, 1], from features [B, C, *spatial].

    4x4 convolutions of stride 2, at least one, until 4x4 or less is left, then a convolution that spans the rest, each
    with group norm and SiLU, and a 1x1 convolution. On 8x8 features that is DMD2's classifier on EDM's networks
    (arXiv:2405.14867). Features of one to three spatial dimensions and any size will do.

    Args:
        channels: C of the features.
        size: The spatial dimensions of the features: (H, W), or (F, H, W) of a video.

    Raises:
        UserError: The features have no spatial dimension, or more than three.
    """

    def __init__(self, channels: int, *size: int) -> None:
        super().__init__()
        if len(size) not in CONVOLUTIONS:
            raise UserError(f"objective: the discriminator reads features (C, *spatial), got {(channels, *size)}")
        convolution = CONVOLUTIONS[len(size)]
        groups = math.gcd(32, max(1, channels // 4))  # never one channel alone, which a norm over 1x1 would erase
        layers: list[nn.Module] = []

        def add(kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]) -> None:
            layers.extend([convolution(channels, channels, kernel, stride, padding)])
            layers.extend([nn.GroupNorm(groups, channels), nn.SiLU()])

        while min(size[-2:]) > 1 and (not layers or max(size) > 4):
            halved = [side > 1 for side in size]  # a video has fewer frames than rows: a single frame stays one
            kernel, stride = (tuple(n if half else 1 for half in halved) for n in (4, 2))
            add(kernel, stride, tuple(map(int, halved)))
            size = tuple(max(1, side // 2) for side in size)
        add(size, (1,) * len(size), (0,) * len(size))
        self.layers = nn.Sequential(*layers, convolution(channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.layers(features)).flatten(1)


@torch.no_grad()
def feature_shape(denoiser: Denoiser, tap: str) -> tuple[int, ...]:
    """Return (C, *spatial) of the features at `tap`, measured on one example of the network's own."""
    network = denoiser.network
    x_t = torch.zeros(1, *network.shape, dtype=next(network.parameters()).dtype)
    t = denoiser.path.time(torch.ones(1, dtype=torch.float64))
    cond = network.example(1).to(x_t.device, x_t.dtype)
    return tuple(denoiser.features(x_t, t, cond, tap).shape[1:])


class Critic(nn.Module):
    """The fake `denoiser` with a `head` on the features of its network at `tap` (see Denoiser.features).

    Called like a denoiser it is one. With `want` "logits" it judges x_t (real or generated, diffused) and runs the
    network only as far as the tap; with "both" one pass gives (x0, logits). Logits are float32 (or float64) [B, ...],
    positive where the sample is taken for real.
    """

    def __init__(self, denoiser: Denoiser, tap: str, head: nn.Module) -> None:
        super().__init__()
        self.denoiser, self.tap, self.head = denoiser, tap, head

    def forward(
        self, x_t: Tensor, t: Tensor, cond: ConditionLike = None, want: Want = "x0"
    ) -> Tensor | tuple[Tensor, Tensor]:
        if want == "x0":
            x0: Tensor = self.denoiser(x_t, t, cond)
            return x0
        if want == "logits":
            logits: Tensor = self.head(self.denoiser.features(x_t, t, cond, self.tap))
            return logits
        x0, features = self.denoiser.with_features(x_t, t, cond, self.tap)
        return x0, self.head(features)


def mean_logit(logits: Tensor) -> Tensor:
    """Return the mean [B] of the logits [B, ...] of a sample."""
    return logits.flatten(1).mean(1)


def discriminator_loss(fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Return (softplus(l_fake), softplus(-l_real)) [B], the discriminator's two losses, averaged over logits."""
    return softplus(fake).flatten(1).mean(1), softplus(-real).flatten(1).mean(1)


def adversarial_loss(fake: Tensor) -> Tensor:
    """Return softplus(-l_fake) [B], the generator's non-saturating loss, averaged over a sample's logits."""
    return softplus(-fake).flatten(1).mean(1)


def accuracy(fake: Tensor, real: Tensor) -> Tensor:
    """Return the share in [0, 1] of right judgements, [B], over the logits [B, ...] of both samples."""
    return ((fake < 0).double().flatten(1).mean(1) + (real > 0).double().flatten(1).mean(1)) / 2


@dataclass(frozen=True, kw_only=True)
class R1:
    """A penalty weight/2 |d l/d real|^2 on the mean logit's slope at the real samples (arXiv:1801.04406), part of the
    discriminator's loss. Off at weight 0."""

    weight: float = 0.0
    noise: float = 0.0
    """0: the exact slope, by differentiating twice. Else the std of a finite difference under normal noise, one more
    pass and no second derivative: its mean is the same (as in FastGen, which leaves out the division by noise^2)."""

    def __post_init__(self) -> None:
        for name, value in (("weight", self.weight), ("noise", self.noise)):
            if not value >= 0:
                raise UserError(f"{name}: must be at least 0, got {value}")

    def judge(self, judge: Callable[[Tensor], Tensor], real: Tensor, random: Random) -> tuple[Tensor, Tensor]:
        """Return the logits [B, ...] that `judge` gives the `real` samples [B, ...], and the penalty [B]."""
        if not self.weight:
            return judge(real), real.new_zeros(len(real))
        if self.noise:
            logits, there = judge(real), judge(real + self.noise * random.normal(*real.shape[1:], dtype=real.dtype))
            slope = ((mean_logit(there) - mean_logit(logits)) / self.noise)[:, None]
        else:
            real = real.detach().requires_grad_()
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention cannot be differentiated twice
                logits = judge(real)
                (slope,) = torch.autograd.grad(mean_logit(logits).sum(), real, create_graph=True)
        return logits, self.weight / 2 * (slope**2).flatten(1).sum(1)


@dataclass(frozen=True)
class LowerPart(Times):
    """The part of the law `times` below its quantile `share`, a scalar tensor in (0, 1]."""

    times: Times
    share: Tensor

    def nsr(self, u: Tensor, path: Path) -> Tensor:
        return self.times.nsr(u * self.share, path)


@dataclass(frozen=True, kw_only=True)
class AdaptiveNoise:
    """Diffusion-GAN's range of noise for the discriminator (arXiv:2206.02262), as a share of a law of times.

    It widens while the discriminator is sure of the real samples, E sign(l(real)) > `target`, and narrows otherwise.
    """

    target: float = 0.6  # the paper's d_target, unverified
    low: float = 0.01  # t_min 10 of 1000 steps, unverified; also where it starts
    high: float = 1.0
    images: int = 100_000  # over which the share moves by 1, unverified

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise UserError(f"low, high: must satisfy 0 < low <= high <= 1, got {self.low} and {self.high}")
        if not self.images > 0:
            raise UserError(f"images: must be positive, got {self.images}")

    def start(self) -> dict[str, Tensor]:
        """Return its memory at the start: the share, and the images at which it was last moved."""
        return {"share": torch.tensor(self.low, dtype=torch.float64), "images": torch.tensor(0.0, dtype=torch.float64)}

    def adapt(self, share: Tensor, last: Tensor, certainty: Tensor, images: int) -> None:
        """Move `share` by the images since the `last` move; `certainty` is the mean of sign(l(real)) over all ranks."""
        direction = (certainty - self.target).sign()  # 0 of nan
        share.add_(direction * (images - last) / self.images).clamp_(self.low, self.high)
        last.fill_(images)
