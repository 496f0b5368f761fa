"""Guidance as a term of its own beside any objective (Luo et al., Diff-Instruct*, arXiv:2410.20898)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from distill.compilation import fused
from distill.denoiser import Denoiser, GuidableDenoiser
from distill.guidance import check_null, classifier_free
from distill.objectives.objective import Batch, Denoisers, l1_normaliser, per_sample
from distill.objectives.wrapper import Wrapper
from distill.times import LogNormal, Times


@fused
def guidance_loss(x: Tensor, conditional: Tensor, unconditional: Tensor, cfg: float) -> Tensor:
    """Return -(cfg - 1) <D_c - D_u, x>, without a gradient through the estimates D_c and D_u.

    A teacher that is guided at the scale `cfg` adds this term to Diff-Instruct's -<gap, x>, since
    T_cfg - F = (D_c - F) + (cfg - 1)(D_c - D_u).

    Args:
        x: Generated samples [B, ...].
        conditional: The teacher's estimate of x0 under the condition, D_c [B, ...].
        unconditional: The teacher's estimate of x0 under the null condition, D_u [B, ...].
        cfg: The scale of the guidance. 1 is no guidance.

    Returns:
        The loss [B].
    """
    return (1 - cfg) * per_sample((conditional - unconditional).detach() * x)


@dataclass(frozen=True, kw_only=True)
class Decoupled(Wrapper):
    """The terms of the inner objective with the plain conditional teacher, and a term of the teacher's guidance.

    The paper's alpha_cfg is teacher_cfg - 1.

    Attributes:
        teacher_cfg: The guidance scale of the teacher.
        guidance_times: The law of the times in the term of the guidance.
        guidance_weight: The weight of a sample in the term of the guidance.
    """

    teacher_cfg: float = 2.0  # unverified; DI* (SDXL) reports alpha_cfg = 4.5 and 7.5 as its best
    guidance_times: Times = LogNormal(-1.2, 1.2)  # unverified: the law of Diff-Instruct
    # With "none" the term is the part of the guidance in Diff-Instruct. With "l1", DMD's 1 / mean |x - D_cfg|, it is
    # the part of the guidance in DMD.
    guidance_weight: Literal["none", "l1"] = "none"

    def check(self, teacher: Denoiser) -> None:
        super().check(teacher)
        check_null(teacher, "guidance")

    def target(self, teacher: GuidableDenoiser, frozen: Mapping[str, Any] | None = None) -> GuidableDenoiser:
        return classifier_free(self.objective.target(teacher, frozen), self.teacher_cfg, teacher.null)

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
