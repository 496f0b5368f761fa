"""Uni-Instruct: f-divergences expanded along the diffusion (Wang et al., arXiv:2505.20755)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from distill.denoiser import Denoiser
from distill.discriminator import R1, ChannelMean, Critic, adversarial_loss
from distill.objectives.adversarial import denoise_and_discriminate
from distill.objectives.f_distill import DIVERGENCE_WEIGHTS, Divergence, density_ratio
from distill.objectives.objective import Batch, Denoisers, Objective, l1_normaliser
from distill.objectives.sid import sid_loss
from distill.times import Karras, Times


@dataclass(frozen=True, kw_only=True)
class UniInstruct(Objective):
    """SiD at alpha = 1 with each sample weighted by h(r), and SiDA's discriminator, which gives r.

    D_f(teacher || generator) is the integral over the diffusion of E[h(r) |s_T - s_F|^2]. Its gradient has a part
    through the generator's score, h(r) <gap, F - x>, and one through its law, for which, as in the authors' code, the
    adversarial term stands (it is 0 for forward_kl, where h(r) = r). The ratio is exp of the logits and constant;
    the authors' code takes it from the value of the cross-entropy.
    """

    divergence: Divergence = "forward_kl"  # the authors' best
    times: Times = Karras(0.002, 80.0, rho=7.0, upto=0.8)  # this and all weights are SiDA's, as in the authors' scripts
    scale: float = 100.0
    discriminator: float = 1.0
    adversarial: float = 0.01  # added, not mixed; counts elements
    ratio_range: tuple[float, float] = (0.1, 20.0)  # f-distill's
    generator_from: int = 100_000  # images until which the fake trains alone
    adversarial_from: int = 200_000  # images until which the ratio is not asked: SiD alone
    r1: R1 = R1()

    needs = frozenset({"real"})
    differentiates_denoisers = True

    def build_fake(self, fake: Denoiser) -> nn.Module:
        return Critic(fake, "encoder", ChannelMean())

    def trains_generator(self, images: int) -> bool:
        return images >= self.generator_from

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        s = self.estimate(nets, x, batch, self.times, logits=nets.images >= self.adversarial_from)
        weight = l1_normaliser(x, s.teacher)
        loss = self.scale * sid_loss(x, s.teacher, s.fake, alpha=1.0)
        if s.logits is None:
            return {"uni_instruct": weight * loss}
        h = DIVERGENCE_WEIGHTS[self.divergence](density_ratio(s.logits, *self.ratio_range))
        h = h / nets.mean(h)
        nets.note("weight", h * weight, nets.path.nsr(s.t))
        adversarial = self.adversarial * x[0].numel() * nets.mean(weight) * adversarial_loss(s.logits.clamp(-10, 10))
        return {"uni_instruct": h * weight * loss, "adversarial": adversarial}

    def fake_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        judged = denoise_and_discriminate(nets, x, batch, self.fake_times, self.fake_weight, self.r1)
        weight = self.discriminator * nets.mean(judged.weight)
        return {"denoising": judged.denoising, "discriminator": weight * judged.loss / 2}
