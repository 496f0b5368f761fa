"""Guidance as a term of its own (Diff-Instruct*'s OUT, Luo et al., arXiv:2410.20898)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distill.denoiser import Denoiser
from distill.guidance import check_null
from distill.objectives.objective import Batch, Denoisers, l1_normaliser, per_sample
from distill.objectives.wrapper import Wrapper
from distill.times import LogNormal, Times


def guidance_loss(x: Tensor, conditional: Tensor, unconditional: Tensor, cfg: float) -> Tensor:
    """-(cfg - 1) <D_c - D_u, x> [B] with both estimates held constant, all [B, ...].

    What a teacher guided at `cfg` adds to Diff-Instruct's -<gap, x>: T_cfg - F = (D_c - F) + (cfg - 1)(D_c - D_u).
    """
    return (1 - cfg) * per_sample((conditional - unconditional).detach() * x)


@dataclass(frozen=True, kw_only=True)
class Decoupled(Wrapper):
    """The inner objective matches the plain conditional teacher; a second term pulls along the teacher's guidance.

    The paper's alpha_cfg is teacher_cfg - 1.
    """

    teacher_cfg: float = 2.0  # unverified; DI* (SDXL) reports alpha_cfg = 4.5 and 7.5 as its best
    guidance_times: Times = LogNormal(-1.2, 1.2)  # unverified: Diff-Instruct's, of which it is the guidance's part
    # l1: DMD's 1/mean |x - D_cfg|, under which it is the guidance's part of DMD; none: that of Diff-Instruct.
    guidance_weight: Literal["none", "l1"] = "none"

    def check(self, teacher: Denoiser) -> None:
        super().check(teacher)
        check_null(teacher, "guidance")

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        terms = self.objective.generator_loss(nets, x, batch)
        with torch.no_grad():
            x_t, t, _ = nets.path.draw(x, self.guidance_times, batch.random.stream("guidance"))
            conditional = nets.teacher(x_t, t, batch.cond)
            unconditional = nets.teacher(x_t, t, nets.teacher.null(batch.cond))
            nets.note("guidance", (conditional - unconditional).abs().flatten(1).mean(1), nets.path.nsr(t))
        term = guidance_loss(x, conditional, unconditional, self.teacher_cfg)
        if self.guidance_weight == "l1":
            guided = unconditional + self.teacher_cfg * (conditional - unconditional)
            term = l1_normaliser(x, guided) * term
        return {**terms, "guidance": term}
