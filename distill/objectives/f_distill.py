"""f-distill: distribution matching under an f-divergence (Xu et al., arXiv:2502.15681)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from distill.denoiser import Denoiser
from distill.discriminator import R1, adversarial_loss, conv_critic, mean_logit
from distill.errors import UserError, require
from distill.objectives.adversarial import denoise_and_discriminate, logits_at
from distill.objectives.dmd import dmd_loss
from distill.objectives.objective import Batch, Denoisers, Estimates, Objective, l1_normaliser
from distill.paths import match
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
"""h(r) = r^2 f''(r), the weight of the difference of the scores in the gradient of D_f(teacher || generator)."""


def density_ratio(logits: Tensor, low: float = 0.0, high: float = float("inf")) -> Tensor:
    """Return the density ratio r = p_teacher(x_t) / p_fake(x_t), without a graph.

    The ratio is exp of the logits of an optimal discriminator.

    Args:
        logits: The discriminator's logits [B, ...], of which the mean is taken.
        low: The smallest ratio.
        high: The largest ratio.

    Returns:
        The ratios [B].
    """
    # The clamp to +-10 keeps exp finite for a discriminator that is sure.
    return mean_logit(logits.detach().clamp(-10, 10)).exp().clamp(low, high)


@dataclass(frozen=True, kw_only=True)
class FDistill(Objective):
    """DMD2 with the weight h(r) on each sample, where the discriminator's logits at the same x_t give r.

    The published code in NVlabs/FastGen does the same. There the head reads the teacher's features. Here it reads the
    fake's, with the weight for its loss, as in DMD2. The adversarial terms are multiplied by the number of elements of
    a sample, as in DMD2.

    Attributes:
        divergence: The divergence whose weight h(r) the samples get.
        times: The law of the times in the generator's loss.
        bins: The number of bins of the times.
        memory: The share of the last update's mean in the mean of a bin.
        r1: The penalty on the discriminator's slope.
    """

    divergence: Divergence = "js"  # the authors' default; forward_kl on CIFAR-10
    times: Times = Karras(0.0021014, 79.131, rho=7.0)  # 0.2 % to 99.8 % of EDM's ramp
    fake_times: Times = Karras(0.0021014, 79.131, rho=7.0)
    adversarial: float = 1e-3  # the weight of the generator's adversarial term on CIFAR-10; 3e-3 on ImageNet 64
    discriminator: float = 1e-2  # the weight of the discriminator's loss in the fake's update
    tap: str = "middle"  # the submodule whose features the head reads
    ratio_range: tuple[float, float] = (0.1, 20.0)  # the smallest and the largest ratio
    bins: int = 10  # the ratio is divided by its mean in its bin
    memory: float = 0.0  # 0.5 on ImageNet 64
    r1: R1 = R1()

    needs = frozenset({"real"})
    generator_reads_real = False

    def __post_init__(self) -> None:
        if not 0 < self.ratio_range[0] < self.ratio_range[1]:
            raise UserError(f"ratio_range: must rise from above 0, got {list(self.ratio_range)}")
        require(self.bins >= 1, f"bins: must be at least 1, got {self.bins}")
        require(0 <= self.memory < 1, f"memory: must be at least 0 and below 1, got {self.memory}")

    def build_fake(self, fake: Denoiser) -> nn.Module:
        return conv_critic(fake, self.tap)

    def new_memory(self) -> dict[str, Tensor]:
        return {"ratio": torch.ones(self.bins, dtype=torch.float64)}

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        s = self.estimate(nets, x, batch, self.times, logits=True)
        h = DIVERGENCE_WEIGHTS[self.divergence](self.normalised_ratio(nets, s))
        h = h / nets.mean(h)
        nets.note("weight", h * l1_normaliser(x, s.teacher), nets.path.nsr(s.t))
        adversarial = adversarial_loss(logits_at(nets, x, batch, self.fake_times))
        terms = {"f_distill": h * dmd_loss(x, s.teacher, s.fake)}
        return {**terms, "adversarial": self.adversarial * x[0].numel() * adversarial}

    def fake_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        losses = denoise_and_discriminate(nets, x, batch, self.fake_times, self.fake_weight, self.r1)
        return {"denoising": losses.denoising, "discriminator": self.discriminator * x[0].numel() * losses.loss}

    def normalised_ratio(self, nets: Denoisers, s: Estimates) -> Tensor:
        """Return the ratio [B] divided by its mean in its bin of times.

        The mean is over all processes, and `memory` extends it over the updates. Each bin has the same share of the law
        of times. The authors' bins are unverified.
        """
        assert s.logits is not None
        ratio, nsr = density_ratio(s.logits, *self.ratio_range), nets.path.nsr(s.t)
        bins = torch.arange(self.bins)
        edges = self.times.nsr(bins[1:].to(nsr.dtype) / self.bins, nets.path)
        inside = match((torch.bucketize(nsr, edges)[:, None] == bins).to(nsr.dtype), ratio)
        mean, known = nets.mean(inside * ratio[:, None]) / nets.mean(inside), nets.memory["ratio"]
        now = self.memory * known + (1 - self.memory) * mean
        # An empty bin has the mean 0/0, and a broken update may have NaN. The memory of such bins stays as it is.
        known.copy_(torch.where(now.isfinite(), now, known))
        return ratio / (inside * known.to(ratio.dtype)).sum(1)
