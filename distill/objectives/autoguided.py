"""Autoguidance of the teacher in any objective (Karras et al., arXiv:2406.02507)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor

from distill.annotations import LocalPath
from distill.denoiser import Denoiser, GuidableDenoiser
from distill.errors import require
from distill.guidance import GuidedDenoiser
from distill.objectives.objective import Batch, Denoisers
from distill.objectives.wrapper import Wrapper


@dataclass(frozen=True, kw_only=True)
class Autoguided(Wrapper):
    """Guidance of the teacher by a weak teacher, under the same condition, in the inner objective.

    The weak teacher is a smaller or earlier model of the same data. No null condition is needed.

    Attributes:
        teacher_autoguidance: The scale of the guidance by the weak teacher.
    """

    weak_teacher: LocalPath  # the folder of the weak teacher
    teacher_autoguidance: float = 2.0  # unverified: the paper's best for EDM2-S is about 2

    def check(self, teacher: Denoiser) -> None:
        super().check(teacher)
        require("pairs" not in self.needs, "objective: no ODE pairs are autoguided; set regression: 0, or guide by cfg")

    def further_teachers(self) -> dict[str, str]:
        return {**super().further_teachers(), "weak_teacher": self.weak_teacher}

    def check_further_teacher(self, name: str, other: Denoiser, teacher: Denoiser) -> None:
        if name != "weak_teacher":
            return super().check_further_teacher(name, other, teacher)
        for what, theirs, ours in (
            ("path", other.path, teacher.path),
            ("shape", other.network.shape, teacher.network.shape),
            ("classes", other.network.classes, teacher.network.classes),
        ):
            require(theirs == ours, f"weak_teacher: '{self.weak_teacher}' has {what} {theirs}, the teacher {ours}")

    def target(self, teacher: GuidableDenoiser, frozen: Mapping[str, Any] | None = None) -> GuidableDenoiser:
        inner = self.objective.target(teacher, frozen)
        if frozen is None:
            return inner
        return cast(GuidableDenoiser, GuidedDenoiser(inner, frozen["weak_teacher"], self.teacher_autoguidance))

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        guided = GuidedDenoiser(nets.teacher, nets.frozen["weak_teacher"], self.teacher_autoguidance)
        return self.objective.generator_loss(replace(nets, teacher=guided), x, batch)
