"""Adversarial Score identity Distillation (Zhou et al., arXiv:2410.14919)."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from distill.denoiser import Denoiser
from distill.discriminator import R1, ChannelMean, Critic, adversarial_loss
from distill.errors import require
from distill.objectives.adversarial import denoise_and_discriminate
from distill.objectives.objective import Batch, Denoisers, Objective, certainty, l1_normaliser
from distill.objectives.sid import sid_loss
from distill.times import Karras, Times

Reduction = Literal["all", "rank", "sample"]
CLAMP = 10.0  # the bound on the logits in the generator's loss alone, beyond which its adversarial gradient is 0


def share_weights(entropy: Tensor, weight: Tensor, reduction: Reduction, nets: Denoisers) -> Tensor:
    """Return the weighted cross-entropy [B], with a graph into both.

    The authors average the cross-entropy bce over the micro-batch of a rank, and then weight the average by each
    sample: mean_i weight_i mean_j bce_j. This equals mean_j (mean_i weight_i) bce_j, so only the mean weight matters.

    Args:
        entropy: The cross-entropy [B] of each sample.
        weight: The weight [B] of each sample.
        reduction: The samples over which the weight is averaged. "rank" is the micro-batch of a rank, as the authors
            do. "all" is the micro-batches of all ranks, so that the number of ranks does not matter. "sample" averages
            nothing: the loss is mean_i weight_i bce_i.
        nets: The services of the trainer.
    """
    if reduction == "sample":
        return weight * entropy
    if reduction == "rank":
        return weight.mean(0) * entropy
    shared = nets.mean(weight) * entropy
    if weight.requires_grad:  # 0, with the slope that a mean over all ranks has no graph for
        shared = shared + (weight - weight.detach()) * nets.mean(entropy)
    return shared


@dataclass(frozen=True, kw_only=True)
class SiDA(Objective):
    """SiD with a discriminator of real and generated samples: the fake's own encoder, without new parameters.

    The adversarial term is multiplied by the number of elements of a sample (P in the paper).

    Attributes:
        alpha: The paper's alpha, as in SiD.
        times: The law of the times in the generator's loss.
        reduction: The average over which the cross-entropy gets its weight.
        r1: The penalty on the discriminator's slope.
        uncertainty: As in SiD. The discriminator's loss is divided too, and u learns from it as well.
    """

    alpha: float = 1.0  # everywhere in the paper, where SiD has 1.2
    times: Times = Karras(0.002, 80.0, rho=7.0, upto=0.8)  # as SiD
    scale: float = 100.0  # the factor on SiD's term
    discriminator: float = 1.0  # the weight of the discriminator's loss in the fake's update; 100 on EDM2
    adversarial: float = 0.01  # the weight of the generator's adversarial term
    mix: float = 0.5  # the share of the adversarial term in the generator's loss; SiD's term has the rest
    generator_from: int = 100_000  # the number of images before which the fake trains alone
    adversarial_from: int = 200_000  # the number of images before which the generator's loss is SiD alone, at weight 1
    reduction: Reduction = "all"  # the authors have "rank"
    r1: R1 = R1()  # off, as in the paper
    uncertainty: bool = False  # true for EDM2's networks, except for the size S

    needs = frozenset({"real"})
    generator_reads_real = False
    differentiates_denoisers = True

    def __post_init__(self) -> None:
        require(0 <= self.mix <= 1, f"mix: must be in [0, 1], got {self.mix}")

    def build_fake(self, fake: Denoiser) -> nn.Module:
        return Critic(fake, "encoder", ChannelMean())

    def trains_generator(self, images: int) -> bool:
        return images >= self.generator_from

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        s = self.estimate(nets, x, batch, self.times, logits=nets.images >= self.adversarial_from)
        weight = l1_normaliser(x, s.teacher)
        if self.uncertainty:
            weight = weight * certainty(nets, s, batch.cond)
        nets.note("weight", weight, nets.path.nsr(s.t))
        sid = self.scale * weight * sid_loss(x, s.teacher, s.fake, self.alpha)
        if s.logits is None:
            return {"sid": sid}
        entropy = adversarial_loss(s.logits.clamp(-CLAMP, CLAMP))
        adversarial = self.adversarial * x[0].numel() * share_weights(entropy, weight, self.reduction, nets)
        return {"sid": (1 - self.mix) * sid, "adversarial": self.mix * adversarial}

    def fake_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        losses = denoise_and_discriminate(
            nets, x, batch, self.fake_times, self.fake_weight, self.r1, uncertainty=self.uncertainty
        )
        discriminator = share_weights(losses.loss / 2, losses.weight, self.reduction, nets)
        return {"denoising": losses.denoising, "discriminator": self.discriminator * discriminator}
