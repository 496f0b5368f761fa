"""Distribution Matching Distillation (Yin et al., arXiv:2311.18828)."""

from __future__ import annotations

from torch import Tensor

from distill.objectives.objective import l1_normaliser, per_sample
from distill.random import expand


def dmd_loss(x: Tensor, teacher: Tensor, fake: Tensor) -> Tensor:
    """|x - sg(x + gap / mean|x - teacher|)|^2 / 2 [B] with gap = teacher - fake, all [B, ...] (eq. 7 and 8).

    Its gradient in x is -gap / mean|x - teacher|, Diff-Instruct's under SiD's normaliser. As in the authors' code the
    factor alpha of eq. 7 is left out (it is 1 on EDM's path); they average over elements where this sums.
    """
    step = expand(l1_normaliser(x, teacher), x) * (teacher - fake)
    return per_sample((x - (x + step).detach()) ** 2) / 2
