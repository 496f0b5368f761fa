"""An objective around another: composition instead of inheritance between methods."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from distill.denoiser import Denoiser
from distill.loss_weights import Weight
from distill.objectives.objective import Batch, Denoisers, Objective
from distill.times import Times


@dataclass(frozen=True, kw_only=True)
class Wrapper(Objective):
    """Everything that it does not change is the inner objective's, the fake's training included."""

    objective: Objective
    fake_times: Times = field(init=False)
    fake_weight: Weight = field(init=False)

    def __post_init__(self) -> None:
        for name in ("fake_times", "fake_weight", "needs", "through_scores", "trains_fake", "uses_samples"):
            object.__setattr__(self, name, getattr(self.objective, name))

    def check(self, teacher: Denoiser) -> None:
        super().check(teacher)
        self.objective.check(teacher)

    def build_fake(self, fake: Denoiser) -> nn.Module:
        return self.objective.build_fake(fake)

    def load_frozen(self) -> dict[str, nn.Module]:
        return self.objective.load_frozen()

    def new_memory(self) -> dict[str, Tensor]:
        return self.objective.new_memory()

    def trains_generator(self, images: int) -> bool:
        return self.objective.trains_generator(images)

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        return self.objective.generator_loss(nets, x, batch)

    def fake_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        return self.objective.fake_loss(nets, x, batch)
