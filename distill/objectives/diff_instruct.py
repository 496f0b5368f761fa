"""Diff-Instruct (Luo et al., arXiv:2305.18455)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from distill.objectives.objective import Batch, Denoisers, Objective, per_sample
from distill.times import LogNormal, Times


def diff_instruct_loss(x: Tensor, teacher: Tensor, fake: Tensor) -> Tensor:
    """-<gap, x> [B] with gap = teacher - fake held constant, all [B, ...].

    Its gradient in x is that of the integral KL divergence weighted by nsr^2 (theorem 3.1; on EDM's path sigma^2).
    """
    return -per_sample((teacher - fake).detach() * x)


@dataclass(frozen=True, kw_only=True)
class DiffInstruct(Objective):
    """Data-free; no gradient passes through the denoisers, which need no graph."""

    times: Times = LogNormal(-1.2, 1.2)  # EDM's training law, as for the fake

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        s = self.estimate(nets, x, batch, self.times)
        return {"diff_instruct": diff_instruct_loss(x, s.teacher, s.fake)}
