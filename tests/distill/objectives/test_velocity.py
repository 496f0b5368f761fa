"""Objectives that count in velocities refuse a path on which these mean nothing."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from distill import Denoiser, Flow, Path, UserError
from distill.objectives import Objective
from distill.objectives.fgm import FGM
from distill.objectives.realuid import RealUID
from tests.toys import At


@dataclass(frozen=True)
class Mine(Path):
    """A user's path that is complete but for the derivatives."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t**2

    def time(self, nsr: Tensor) -> Tensor:
        return nsr.sqrt()


@dataclass(frozen=True)
class Vertical(Mine):
    """Whose noise rises without bound in t from the half on."""

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.where(t < 0.5, 2 * t, torch.inf)


@pytest.mark.parametrize("objective", [FGM, RealUID])
def test_a_path_without_velocities(objective: type[Objective]) -> None:
    name = objective.__name__
    for path, message in (
        (Mine(), rf"^objective: {name} needs velocities, the path Mine\(\) has no derivatives\(\)$"),
        (Vertical(), rf"^objective: {name} needs velocities, whose weight on Vertical\(\) is inf at .* ratio 0.25"),
    ):
        with pytest.raises(UserError, match=message):
            objective().check(Denoiser(nn.Identity(), path, "x0"))
    objective(times=At(0.2), fake_times=At(0.2)).check(Denoiser(nn.Identity(), Vertical(), "x0"))
    with pytest.raises(UserError, match=rf"^objective: {name} .* whose weight on Flow\(\) is inf at the .* ratio 0$"):
        objective(times=At(0.0)).check(Denoiser(nn.Identity(), Flow(), "x0"))
