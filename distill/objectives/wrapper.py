"""The base of objectives that hold another objective, so that methods are composed and do not inherit."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from torch import Tensor, nn

from distill.denoiser import Denoiser, GuidableDenoiser
from distill.loss_weights import Weight
from distill.objectives.objective import Batch, Denoisers, Objective
from distill.times import Times


@dataclass(frozen=True, kw_only=True)
class Wrapper(Objective):
    """An objective around an inner `objective`. All that a subclass does not override comes from the inner one.

    Attributes:
        objective: The inner objective.
    """

    objective: Objective
    fake_times: Times = field(init=False)
    fake_weight: Weight | None = field(init=False)

    def __post_init__(self) -> None:
        flags = "differentiates_denoisers", "trains_fake", "uses_samples", "generator_reads_real"
        for name in ("fake_times", "fake_weight", *flags):
            # A frozen dataclass sets its own attributes by object.__setattr__.
            object.__setattr__(self, name, getattr(self.objective, name))

    @property
    def needs(self) -> frozenset[str]:
        return self.objective.needs

    @property
    def taps_teacher(self) -> bool:
        return self.objective.taps_teacher

    def check(self, teacher: Denoiser) -> None:
        super().check(teacher)
        self.objective.check(teacher)

    def following(self, teacher: Denoiser) -> Self:
        return replace(self, objective=self.objective.following(teacher))

    def build_fake(self, fake: Denoiser) -> nn.Module:
        return self.objective.build_fake(fake)

    def further_teachers(self) -> dict[str, str]:
        return self.objective.further_teachers()

    def check_further_teacher(self, name: str, other: Denoiser, teacher: Denoiser) -> None:
        self.objective.check_further_teacher(name, other, teacher)

    def load_frozen(self) -> dict[str, nn.Module]:
        return self.objective.load_frozen()

    def target(self, teacher: GuidableDenoiser, frozen: Mapping[str, Any] | None = None) -> GuidableDenoiser:
        return self.objective.target(teacher, frozen)

    def new_memory(self) -> dict[str, Tensor]:
        return self.objective.new_memory()

    def trains_generator(self, images: int) -> bool:
        return self.objective.trains_generator(images)

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        return self.objective.generator_loss(nets, x, batch)

    def fake_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        return self.objective.fake_loss(nets, x, batch)
