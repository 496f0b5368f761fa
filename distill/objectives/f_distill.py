"""f-distill: distribution matching under an f-divergence (Xu et al., arXiv:2502.15681)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from distill.denoiser import Denoiser
from distill.discriminator import R1, ConvHead, Critic, adversarial_loss, feature_shape, mean_logit
from distill.errors import UserError
from distill.objectives.adversarial import denoise_and_discriminate, logits_at
from distill.objectives.dmd import dmd_loss
from distill.objectives.objective import Batch, Denoisers, Estimates, Objective, l1_normaliser
from distill.times import Karras, Times

Divergence = Literal["reverse_kl", "forward_kl", "js", "softened_reverse_kl", "neyman", "squared_hellinger", "jeffreys"]
DIVERGENCE_WEIGHTS: dict[Divergence, Callable[[Tensor], Tensor]] = {
    "reverse_kl": torch.ones_like,
    "forward_kl": lambda r: r,
    "js": lambda r: r / (1 + r),
    "softened_reverse_kl": lambda r: 1 / (1 + r),
    "neyman": lambda r: 2 / r,
    "squared_hellinger": lambda r: r.sqrt() / 4,
    "jeffreys": lambda r: 1 + r,
}
"""h(r) = r^2 f''(r): the weight of the scores' difference in the gradient of D_f(teacher || generator)."""


def density_ratio(logits: Tensor, low: float = 0.0, high: float = float("inf")) -> Tensor:
    """r = p_teacher(x_t) / p_fake(x_t) [B] = exp of the logits [B, ...], within +-10 and averaged; without graph."""
    return mean_logit(logits.detach().clamp(-10, 10)).exp().clamp(low, high)


@dataclass(frozen=True, kw_only=True)
class FDistill(Objective):
    """DMD2 with each sample weighted by h(r), which the discriminator's logits give at the same x_t.

    As in NVlabs/FastGen; unlike there the head reads the fake's features (as in DMD2), with DMD2's weight for its
    loss. As in DMD2 the adversarial terms count elements.
    """

    divergence: Divergence = "js"  # the authors' default; forward_kl on CIFAR-10
    times: Times = Karras(0.0021014, 79.131, rho=7.0)  # 0.2 % to 99.8 % of EDM's ramp
    fake_times: Times = Karras(0.0021014, 79.131, rho=7.0)
    adversarial: float = 1e-3  # of the generator's term, on CIFAR-10; 3e-3 on ImageNet 64
    discriminator: float = 1e-2
    tap: str = "middle"
    ratio_range: tuple[float, float] = (0.1, 20.0)
    bins: int = 10  # of time; the ratio is divided by its mean in its bin
    memory: float = 0.0  # what that mean keeps of the last one; 0.5 on ImageNet 64
    r1: R1 = R1()

    needs = frozenset({"real"})

    def __post_init__(self) -> None:
        if not 0 < self.ratio_range[0] < self.ratio_range[1]:
            raise UserError(f"ratio_range: must rise from above 0, got {list(self.ratio_range)}")
        if not self.bins >= 1:
            raise UserError(f"bins: must be at least 1, got {self.bins}")
        if not 0 <= self.memory < 1:
            raise UserError(f"memory: must be at least 0 and below 1, got {self.memory}")

    def build_fake(self, fake: Denoiser) -> nn.Module:
        return Critic(fake, self.tap, ConvHead(*feature_shape(fake, self.tap)))

    def new_memory(self) -> dict[str, Tensor]:
        return {"ratio": torch.ones(self.bins, dtype=torch.float64)}

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        s = self.estimate(nets, x, batch, self.times, logits=True)
        h = DIVERGENCE_WEIGHTS[self.divergence](self.normalised_ratio(nets, s))
        h = h / nets.mean(h)
        nets.note("weight", h * l1_normaliser(x, s.teacher), nets.path.nsr(s.t))
        deceive = adversarial_loss(logits_at(nets, x, batch, self.fake_times))
        return {
            "f_distill": h * dmd_loss(x, s.teacher, s.fake),
            "adversarial": self.adversarial * x[0].numel() * deceive,
        }

    def fake_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        judged = denoise_and_discriminate(nets, x, batch, self.fake_times, self.fake_weight, self.r1)
        return {"denoising": judged.denoising, "discriminator": self.discriminator * x[0].numel() * judged.loss}

    def normalised_ratio(self, nets: Denoisers, s: Estimates) -> Tensor:
        """The ratio [B] over its mean in its time bin, on all ranks and by memory over the updates.

        Bins hold equal shares of the law of times; the authors' edges are unverified.
        """
        assert s.logits is not None
        ratio, nsr = density_ratio(s.logits, *self.ratio_range), nets.path.nsr(s.t)
        bins = torch.arange(self.bins, device=nsr.device)
        edges = self.times.nsr(bins[1:].to(nsr.dtype) / self.bins, nets.path)
        index = torch.bucketize(nsr, edges)
        inside = (index[:, None] == bins).to(ratio.dtype)
        mean, known = nets.mean(inside * ratio[:, None]) / nets.mean(inside), nets.memory["ratio"]
        now = self.memory * known + (1 - self.memory) * mean
        known.copy_(torch.where(now.isfinite(), now, known))  # 0/0 in an empty bin; nan in an update to be skipped
        return ratio / known[index].to(ratio.dtype)
