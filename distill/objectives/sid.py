"""Score identity Distillation (Zhou et al., arXiv:2404.04057)."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from distill.compilation import fused
from distill.loss_weights import GeneratorWeight, generator_weight
from distill.objectives.objective import Batch, Denoisers, Objective, certainty, l1_normaliser, per_sample
from distill.paths import match
from distill.times import Karras, Times


@fused
def sid_loss(x: Tensor, teacher: Tensor, fake: Tensor, alpha: float) -> Tensor:
    """Return <gap, teacher - x - alpha gap> with gap = teacher - fake (eq. 23, in estimates of x0).

    This equals (1 - alpha) |gap|^2 + <gap, fake - x>. The gradient passes through all three tensors.

    Args:
        x: Generated samples [B, ...].
        teacher: The teacher's estimate of x0 [B, ...].
        fake: The fake's estimate of x0 [B, ...].
        alpha: The paper's alpha.

    Returns:
        The loss [B].
    """
    gap = teacher - fake
    return per_sample(gap * (teacher - x - alpha * gap))


@dataclass(frozen=True, kw_only=True)
class SiD(Objective):
    """The objective of SiD, which needs no data. Its gradient passes through both denoisers.

    Attributes:
        alpha: The paper's alpha: the squared gap of teacher and fake counts 1 - alpha times.
        times: The law of the times in the generator's loss.
        weight: The weight of a sample.
        scale: The factor on the loss.
        uncertainty: Whether the losses are divided by e^u, for the fake's learned uncertainty u of its estimate.
    """

    alpha: float = 1.2  # the paper's best on CIFAR-10, ImageNet 64 and FFHQ; 1.0 on AFHQ-v2
    times: Times = Karras(0.002, 80.0, rho=7.0, upto=0.8)  # t_max = 800 of 1000: nsr up to 24.4
    weight: Literal["l1", GeneratorWeight] = "l1"  # l1 is 1 / mean |x - teacher|, the others depend on the noise level
    scale: float = 100.0  # the authors' loss scale lambda_theta; Adam cancels it, up to its eps
    uncertainty: bool = False  # true for EDM2's networks in arXiv:2410.14919

    differentiates_denoisers = True

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        s = self.estimate(nets, x, batch, self.times)
        nsr = nets.path.nsr(s.t)
        weight = l1_normaliser(x, s.teacher) if self.weight == "l1" else match(generator_weight(self.weight, nsr), x)
        if self.uncertainty:
            weight = weight * certainty(nets, s, batch.cond)
        nets.note("weight", weight, nsr)
        return {"sid": self.scale * weight * sid_loss(x, s.teacher, s.fake, self.alpha)}
