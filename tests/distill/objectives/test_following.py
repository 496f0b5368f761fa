"""Laws and weights that a recipe leaves out, and that follow from the teacher."""

from __future__ import annotations

import pytest
from torch import nn

from distill.denoiser import Denoiser
from distill.loss_weights import Weight
from distill.objectives import DMD2, FGM, SIM, DiffInstruct, Guided, Objective, SiD
from distill.paths import EDM, VP, DiscreteVP, Flow, Path
from distill.prediction import Kind
from distill.times import Karras, LogNormal, Times, UniformSteps

KARRAS, EDMS, LOGIT = Karras(0.002, 80.0, upto=0.8), LogNormal(-1.2, 1.2), LogNormal(0.0, 1.0)
STEPS = UniformSteps(20, 979)


@pytest.mark.parametrize(
    ("objective", "path", "prediction", "times", "fake_times", "weight"),
    [
        (SiD(), EDM(), "edm", KARRAS, EDMS, "edm"),
        (SiD(), DiscreteVP(), "eps", STEPS, STEPS, "eps"),
        (SIM(), DiscreteVP(), "v", STEPS, STEPS, "v"),
        (SiD(), Flow(), "velocity", LOGIT, LOGIT, "velocity"),
        (SiD(), EDM(), "x0", KARRAS, KARRAS, "x0"),
        (DiffInstruct(), VP(), "score", EDMS, EDMS, "eps"),
        (SiD(times=EDMS), Flow(), "x0", EDMS, EDMS, "x0"),
        (SiD(fake_times=LogNormal(-1.2, 1.2), fake_weight="edm"), Flow(), "x0", LOGIT, EDMS, "edm"),
        (FGM(), Flow(), "x0", LOGIT, LOGIT, "velocity"),
        (DMD2(), DiscreteVP(steps=100), "eps", UniformSteps(2, 97), UniformSteps(2, 97), "eps"),
    ],
)
def test_what_is_left_out_follows_from_the_teacher(
    objective: Objective, path: Path, prediction: Kind, times: Times, fake_times: Times, weight: Weight
) -> None:
    teacher = Denoiser(nn.Identity(), path, prediction)
    followed = objective.following(teacher)
    assert (followed.times, followed.fake_times, followed.fake_weight) == (times, fake_times, weight)
    assert followed.following(teacher) == followed
    guided = Guided(objective=objective).following(teacher)
    assert (guided.objective, guided.fake_times, guided.fake_weight) == (followed, fake_times, weight)
