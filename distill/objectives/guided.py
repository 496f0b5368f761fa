"""Long and short guidance: guided denoisers in any objective (SiD-LSG, Zhou et al., arXiv:2406.01561)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from distill.denoiser import Denoiser, GuidableDenoiser
from distill.errors import UserError
from distill.guidance import check_null, classifier_free, drop_conditions
from distill.objectives.objective import Batch, Denoisers
from distill.objectives.wrapper import Wrapper


@dataclass(frozen=True, kw_only=True)
class Guided(Wrapper):
    """Classifier-free guidance of the teacher and the fake in the inner objective.

    The scales have the convention of `distill.guidance`. The inner objective sees the guided estimates in place of the
    plain ones, in its weights too. The generator itself is never guided.

    A fake that trains under guidance learns to equal E[x | x_t, cond] at the scale fake_training_cfg. At fake_cfg it is
    then guided by the quotient fake_cfg / fake_training_cfg. The generator matches the teacher's own law where the
    quotient equals teacher_cfg, and a sharper law where it is smaller. LSG's equal scales therefore amount to a guided
    teacher and an exact fake.

    Attributes:
        teacher_cfg: The guidance scale of the teacher.
        fake_cfg: The guidance scale of the fake in the generator's loss.
        fake_training_cfg: The guidance scale of the fake in its own training.
    """

    # kappa 4. LSG, where all four are equal, has the best FID at 1.5, a balance at 2, the best CLIP score at 3 to 4.5.
    teacher_cfg: float = 1.5
    fake_cfg: float = 1.5  # kappa 2 and kappa 3
    fake_training_cfg: float = 1.5  # kappa 1
    in_one_pass: bool = False  # both estimates from one pass over a doubled batch: fewer launches and more memory
    condition_dropout: float = 0.1  # the fake's share of null conditions in training, where either scale is not 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.condition_dropout <= 1:
            raise UserError(f"condition_dropout: must be between 0 and 1, got {self.condition_dropout}")

    def check(self, teacher: Denoiser) -> None:
        super().check(teacher)
        check_null(teacher, "guidance")

    def target(self, teacher: GuidableDenoiser, frozen: Mapping[str, Any] | None = None) -> GuidableDenoiser:
        """Return the teacher at the scale s whose law is the generator's optimum: s times the fake's quotient is
        teacher_cfg. A quotient of 0 has no such law, and leaves teacher_cfg.
        """
        quotient = self.fake_cfg / self.fake_training_cfg if self.fake_training_cfg else 0.0
        inner = self.objective.target(teacher, frozen)
        return classifier_free(inner, self.teacher_cfg / (quotient or 1.0), teacher.null)

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        null = nets.teacher.null
        teacher = classifier_free(nets.teacher, self.teacher_cfg, null, self.in_one_pass)
        fake = classifier_free(nets.fake, self.fake_cfg, null, self.in_one_pass)
        return self.objective.generator_loss(replace(nets, teacher=teacher, fake=fake), x, batch)

    def fake_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        null = nets.teacher.null
        if (self.fake_cfg, self.fake_training_cfg) != (1, 1):  # without guidance the fake's null condition is not used
            cond = drop_conditions(batch.cond, null(batch.cond), self.condition_dropout, batch.random)
            batch = replace(batch, cond=cond)
        fake = classifier_free(nets.fake, self.fake_training_cfg, null, self.in_one_pass)
        return self.objective.fake_loss(replace(nets, fake=fake), x, batch)
