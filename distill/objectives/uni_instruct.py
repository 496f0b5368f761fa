"""Uni-Instruct: f-divergences expanded along the diffusion (Wang et al., arXiv:2505.20755)."""

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
    """SiD at alpha = 1 with the weight h(r) on each sample, where SiDA's discriminator gives r.

    D_f(teacher || generator) is the integral over the diffusion of E[h(r) |s_T - s_F|^2]. Its gradient has two parts.
    The part through the generator's score is h(r) <gap, F - x>. The part through the generator's law is 0 for
    forward_kl, where h(r) = r. As in the authors' code, the adversarial term stands for it. No gradient passes through
    the ratio r, which is exp of the logits. The authors' code takes r from the value of the cross-entropy.

    Attributes:
        divergence: The divergence whose weight h(r) the samples get.
        times: The law of the times in the generator's loss.
        r1: The penalty on the discriminator's slope.
    """

    divergence: Divergence = "forward_kl"  # the authors' best
    # The times and all weights are SiDA's, as in the authors' scripts.
    times: Times = Karras(0.002, 80.0, rho=7.0, upto=0.8)
    scale: float = 100.0  # the factor on SiD's term
    discriminator: float = 1.0  # the weight of the discriminator's loss in the fake's update
    adversarial: float = 0.01  # the weight of the adversarial term, which is multiplied by the number of elements
    ratio_range: tuple[float, float] = (0.1, 20.0)  # the smallest and the largest ratio, as in f-distill
    generator_from: int = 100_000  # the number of images before which the fake trains alone
    adversarial_from: int = 200_000  # the number of images before which the generator's loss is SiD alone
    r1: R1 = R1()

    needs = frozenset({"real"})
    generator_reads_real = False
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
        losses = denoise_and_discriminate(nets, x, batch, self.fake_times, self.fake_weight, self.r1)
        weight = self.discriminator * nets.mean(losses.weight)
        return {"denoising": losses.denoising, "discriminator": weight * losses.loss / 2}
