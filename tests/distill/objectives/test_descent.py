"""The whole loop in miniature: x = a z + b descends to the teacher N(mu, s^2), with the fake exact at every step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill import EDM, VP, Flow, Path, Random
from distill.objectives import FGM, Batch, Denoisers, DiffInstruct, Objective, SiD, SiDA
from tests.toys import ExactCritic, White

MU, S = -0.3, 1.3
STEPS, BATCH, SHAPE = 200, 32, (1, 4, 4)
OBJECTIVES = {
    "sid_1.2": SiD(alpha=1.2),
    "sid_1.0": SiD(alpha=1.0),
    "diff_instruct": DiffInstruct(),
    "fgm_second": FGM(),
    "fgm_both": FGM(first=1.0),
    "sida": SiDA(),
}


def white(path: Path, mean: Tensor, std: Tensor) -> White:
    return White(path, mean.detach().expand(1, *SHAPE), std.detach().abs().reshape(1))


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("path", [EDM(), VP(), Flow()], ids=["edm", "vp", "flow"])
@pytest.mark.parametrize("start", [(0.4, 0.5), (-2.0, 1.0)], ids=["narrow", "wide"])
def test_descent_reaches_the_teacher(path: Path, objective: Objective, start: tuple[float, float]) -> None:
    """To four digits, under the objective's own law of times; the sign of a is free and stays as it starts.

    A discriminator is exact as well, and its schedule over.
    """
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
        nets = Denoisers(path, teacher, ExactCritic(teacher, white(path, b, a)), memory=memory)
        terms = objective.generator_loss(nets, a * z + b, Batch(z, random, images=10**9))
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum(0).mean().backward()
        optimizer.step()
        decay.step()
    a, b = (p.detach() for p in parameters)
    assert a.item() == pytest.approx(S if start[0] > 0 else -S, abs=1e-4)
    assert b.item() == pytest.approx(MU, abs=1e-4)
