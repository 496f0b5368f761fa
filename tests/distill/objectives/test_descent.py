"""The whole loop in miniature: x = a z + b descends to the teacher N(mu, s^2), with the fake exact at every step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distill import EDM, VP, Flow, Path, Random
from distill.conditions import ConditionLike
from distill.discriminator import Want
from distill.objectives import Batch, Denoisers, Objective
from distill.objectives.diff_instruct import DiffInstruct
from distill.objectives.dmd import DMD
from distill.objectives.dmd2 import DMD2
from distill.objectives.f_distill import FDistill
from distill.objectives.fgm import FGM
from distill.objectives.realuid import RealUID
from distill.objectives.score_mismatching import ScoreMismatching
from distill.objectives.sid import SiD
from distill.objectives.sida import SiDA
from distill.objectives.sim import SIM, Exponential, Huber, SquaredL2
from distill.objectives.uni_instruct import UniInstruct
from distill.paths import beside
from distill.prediction import Kind, coefficients, from_x0
from distill.random import expand
from distill.times import Karras, LogNormal, Times
from tests.toys import ExactCritic, White

MU, S = -0.3, 1.3
STEPS, BATCH, SHAPE = 200, 32, (1, 4, 4)
OBJECTIVES = {
    "sid_1.2": SiD(alpha=1.2),
    "sid_1.0": SiD(alpha=1.0),
    "sid_1-t": SiD(weight="1-t"),
    "sim": SIM(),
    "sim_squared_l2": SIM(distance=SquaredL2()),
    "sim_huber": SIM(distance=Huber(c=0.1)),
    "sim_exponential": SIM(distance=Exponential()),
    "diff_instruct": DiffInstruct(),
    "fgm_second": FGM(),
    "fgm_both": FGM(first=1.0),
    "sida": SiDA(),
    "realuid": RealUID(),
    "dmd2": DMD2(),
    "f_distill": FDistill(),
    "uni_instruct": UniInstruct(),
    "dmd": DMD(regression=0.0),
}


def white(path: Path, mean: Tensor, std: Tensor) -> White:
    return White(path, mean.detach().expand(1, *SHAPE), std.detach().abs().reshape(1))


class ExactFake(ExactCritic):
    """The minimiser of the objective's fake loss, where the real images are the teacher's."""

    def __init__(self, objective: Objective, teacher: White, generated: White) -> None:
        super().__init__(teacher, generated)
        self.objective = objective

    def forward(self, x_t: Tensor, t: Tensor, cond: ConditionLike = None, want: Want = "x0") -> Any:
        if isinstance(self.objective, RealUID):
            a, b = self.objective.a, self.objective.b
            return self.mixed("velocity", x_t, t, (b, 1 - b), (a, 1 - a))
        if isinstance(self.objective, ScoreMismatching):
            return self.mixed("eps", x_t, t, (0, 1), (1, 1))
        return super().forward(x_t, t, cond, want)

    def mixed(
        self, kind: Kind, x_t: Tensor, t: Tensor, over: tuple[float, float], under: tuple[float, float]
    ) -> Tensor:
        """x0 where the network of `kind` says (over_0 p_ours u_ours + over_1 p_real u_real) / (under . p)."""
        ratio = expand(super().forward(x_t, t, None, "logits")[:, 0].clamp(max=700).exp(), x_t)
        ours, real = (from_x0(kind, self.teacher.path, net(x_t, t), x_t, t) for net in (self.fake, self.teacher))
        from_x_t, from_output, _ = beside(x_t, *coefficients(kind, self.teacher.path, t))
        mean = (over[0] * ours + over[1] * ratio * real) / (under[0] + under[1] * ratio)
        return from_x_t * x_t + from_output * mean


def descend(path: Path, objective: Objective, start: tuple[float, float]) -> tuple[float, float]:
    """a and b after STEPS, under the objective's own law of times; a discriminator's schedule is over."""
    mu, s, a, b = torch.tensor([MU, S, *start], dtype=torch.float64)
    teacher = white(path, mu, s)
    parameters = [a.clone().requires_grad_(), b.clone().requires_grad_()]
    optimizer = torch.optim.Adam(parameters, lr=0.1, betas=(0.0, 0.9))
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    memory = objective.new_memory()
    for step in range(STEPS):
        random = Random.at(0, torch.arange(BATCH) + step * BATCH)
        z = random.stream("latent").normal(*SHAPE, dtype=torch.float64)
        a, b = parameters
        fake = ExactFake(objective, teacher, white(path, b, a))
        nets = Denoisers(path, teacher, fake, memory=memory, images=10**9)
        terms = objective.generator_loss(nets, a * z + b, Batch(z, random))
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum(0).mean().backward()
        optimizer.step()
        decay.step()
    return parameters[0].item(), parameters[1].item()


every_path = pytest.mark.parametrize("path", [EDM(), VP(), Flow()], ids=["edm", "vp", "flow"])


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@every_path
@pytest.mark.parametrize("start", [(0.4, 0.5), (-2.0, 1.0)], ids=["narrow", "wide"])
def test_descent_reaches_the_teacher(path: Path, objective: Objective, start: tuple[float, float]) -> None:
    """To four digits; the sign of a is free and stays as it starts."""
    a, b = descend(path, objective, start)
    assert a == pytest.approx(S if start[0] > 0 else -S, abs=1e-4)
    assert b == pytest.approx(MU, abs=1e-4)


@every_path
@pytest.mark.parametrize(("times", "part"), [(Karras(0.01, 0.31, rho=1.0), 0.946), (LogNormal(0.0, 1.0), 0.90)])
def test_score_mismatching_ends_narrower_than_the_data(path: Path, times: Times, part: float) -> None:
    """Its game has no equilibrium at the data; in 16 dimensions, at the authors' noise levels and at higher ones."""
    a, b = descend(path, ScoreMismatching(times=times), (0.4, 0.5))
    assert a == pytest.approx(part * S, abs=0.01 * S)
    assert b == pytest.approx(MU, abs=0.02)
