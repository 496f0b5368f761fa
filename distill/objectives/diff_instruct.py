"""Diff-Instruct (Luo et al., arXiv:2305.18455)."""

from dataclasses import dataclass

from torch import Tensor

from distill.compilation import fused
from distill.objectives.objective import Batch, Denoisers, Objective, per_sample
from distill.times import LogNormal, Times


@fused
def diff_instruct_loss(x: Tensor, teacher: Tensor, fake: Tensor) -> Tensor:
    """Return -<gap, x> with gap = teacher - fake, without a gradient through gap.

    The gradient in x is that of the integral KL divergence with the weight nsr^2, which is sigma^2 on EDM's path
    (theorem 3.1).

    Args:
        x: Generated samples [B, ...].
        teacher: The teacher's estimate of x0 [B, ...].
        fake: The fake's estimate of x0 [B, ...].

    Returns:
        The loss [B].
    """
    return -per_sample((teacher - fake).detach() * x)


@dataclass(frozen=True, kw_only=True)
class DiffInstruct(Objective):
    """The objective of Diff-Instruct, which needs no data. The denoisers need no graph.

    Attributes:
        times: The law of the times in the generator's loss.
    """

    times: Times = LogNormal(-1.2, 1.2)  # the law that EDM trains with, as for the fake

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        s = self.estimate(nets, x, batch, self.times)
        return {"diff_instruct": diff_instruct_loss(x, s.teacher, s.fake)}
