"""Any objective with an autoguided teacher (Karras et al., arXiv:2406.02507)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.guidance import GuidedDenoiser
from distill.objectives.objective import Batch, Denoisers
from distill.objectives.wrapper import Wrapper
from distill.teachers import load_denoiser


@dataclass(frozen=True, kw_only=True)
class Autoguided(Wrapper):
    """The teacher is guided by a smaller or earlier model of the same data, under the same condition; needs no null."""

    weak_teacher: str  # folder of a teacher
    teacher_autoguidance: float = 2.0  # unverified: the paper's best for EDM2-S is about 2

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weak_teacher", str(Path(self.weak_teacher).resolve()))  # found from anywhere later

    def check(self, teacher: Denoiser) -> None:
        super().check(teacher)
        weak = load_denoiser(self.weak_teacher)
        for what, theirs, ours in (
            ("path", weak.path, teacher.path),
            ("shape", weak.network.shape, teacher.network.shape),
            ("classes", weak.network.classes, teacher.network.classes),
        ):
            if theirs != ours:
                raise UserError(f"weak_teacher: '{self.weak_teacher}' has {what} {theirs}, the teacher {ours}")

    def load_frozen(self) -> dict[str, nn.Module]:
        return {**super().load_frozen(), "weak_teacher": load_denoiser(self.weak_teacher)}

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        guided = GuidedDenoiser(nets.teacher, nets.frozen["weak_teacher"], self.teacher_autoguidance)
        return self.objective.generator_loss(replace(nets, teacher=cast(Denoiser, guided)), x, batch)
