"""A discriminator on the features of the fake denoiser, and the losses of the two sides.

The fake's own encoder tells real from generated samples (SiDA, arXiv:2410.14919; DMD2, arXiv:2405.14867): a few more
parameters at most, and one pass gives denoising and judgement together.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import Tensor, nn
from torch.nn.functional import softplus

from distill.denoiser import Condition, Denoiser

Want: TypeAlias = Literal["x0", "logits", "both"]


class ChannelMean(nn.Module):
    """Logits [B, h, w]: the mean of the features [B, C, h, w] over channels, without a parameter (SiDA)."""

    def forward(self, features: Tensor) -> Tensor:
        return features.mean(1)


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
        self, x_t: Tensor, t: Tensor, cond: Condition = None, want: Want = "x0"
    ) -> Tensor | tuple[Tensor, Tensor]:
        if want == "x0":
            x0: Tensor = self.denoiser(x_t, t, cond)
            return x0
        if want == "logits":
            logits: Tensor = self.head(self.denoiser.features(x_t, t, cond, self.tap))
            return logits
        x0, features = self.denoiser.with_features(x_t, t, cond, self.tap)
        return x0, self.head(features)


def judge_loss(fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """(softplus(l_fake), softplus(-l_real)) [B]: the discriminator's two sides, averaged over a sample's logits."""
    return softplus(fake).flatten(1).mean(1), softplus(-real).flatten(1).mean(1)


def deceive_loss(fake: Tensor) -> Tensor:
    """softplus(-l_fake) [B]: the generator's side, non-saturating, averaged over a sample's logits."""
    return softplus(-fake).flatten(1).mean(1)


def accuracy(fake: Tensor, real: Tensor) -> Tensor:
    """Share in [0, 1] of right judgements, [B], over both samples' logits [B, ...]."""
    return ((fake < 0).double().flatten(1).mean(1) + (real > 0).double().flatten(1).mean(1)) / 2
