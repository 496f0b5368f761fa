"""The signs of health in the log are what they are said to be (docs/health.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.objectives import Batch, Denoisers, Estimates, Objective, per_sample
from distill.objectives.sid import sid_loss
from distill.times import LogNormal, Times
from tests.tiny import build_session, fit_run, recipe
from trainers.engine.session import Session
from trainers.hooks.log import with_ratios


@dataclass(frozen=True, kw_only=True)
class TwoTerms(Objective):
    """SiD and a pull towards zero whose gradient at x is known: 2 scale x."""

    scale: float = 3.0
    times: Times = LogNormal(-1.2, 1.2)

    differentiates_denoisers = True

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        s = self.estimate(nets, x, batch, self.times)
        return {"sid": sid_loss(x, s.teacher, s.fake, 1.0), "pull": self.scale * per_sample(x**2)}


def session_of(settings: dict[str, Any]) -> Session:
    return build_session(settings)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Estimates, Tensor]]:
    """What every call of Objective.estimate was given and gave."""
    found: list[tuple[Estimates, Tensor]] = []
    estimate = Objective.estimate

    def spy(self: Objective, nets: Denoisers, x: Tensor, *rest: Any) -> Estimates:
        result = estimate(self, nets, x, *rest)
        found.append((result, x))
        return result

    monkeypatch.setattr(Objective, "estimate", spy)
    return found


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_gap_and_errors_by_noise_bin(micro_batches: int, teachers: Path, seen: list[tuple[Estimates, Tensor]]) -> None:
    session = session_of(recipe(teachers / "edm", batch_size=32, images=96, micro_batches=micro_batches))
    for _ in range(2):
        session.update_players(session)
        session.state.images += 32
    means = session.state.meter.read(session.accelerator)
    assert len(seen) == 2 * micro_batches
    teacher, fake, nsr = (torch.cat([getattr(s, name) for s, _ in seen]).detach() for name in ("teacher", "fake", "t"))
    x = torch.cat([x for _, x in seen]).detach()
    middle = (nsr >= 10**-0.5) & (nsr < 1)
    assert 0 < int(middle.sum()) < 64
    wanted = {"gap": (teacher - fake).abs(), "fake_error": (fake - x) ** 2, "teacher_error": (teacher - x) ** 2}
    for name, elements in wanted.items():
        assert means[f"health/{name}"] == pytest.approx(float(elements.mean()), rel=1e-5)
        assert means[f"health/{name}/nsr 0.32-1"] == pytest.approx(float(elements[middle].mean()), rel=1e-5)
    weight = 1 / (x - teacher).abs().flatten(1).mean(1)
    assert means["health/weight"] == pytest.approx(float(weight.mean()), rel=1e-5)


def test_the_fake_knows_its_samples_better_than_the_teacher_by_this_ratio() -> None:
    means = {"health/fake_error": 2.0, "health/teacher_error": 4.0, "health/fake_error/nsr<0.1": 3.0}
    means |= {"health/teacher_error/nsr<0.1": 2.0, "health/fake_error/nsr>10": 1.0, "health/teacher_error/nsr>10": 0.0}
    assert with_ratios(means) == {**means, "health/fake_vs_teacher": 0.5, "health/fake_vs_teacher/nsr<0.1": 1.5}


def objective(**fields: Any) -> dict[str, Any]:
    return {"name": "tests.trainers.hooks.test_health:TwoTerms", **fields}


@pytest.mark.parametrize("backprop", ["joint", "one_by_one"])
def test_each_terms_gradient_at_the_samples(
    backprop: str, teachers: Path, seen: list[tuple[Estimates, Tensor]]
) -> None:
    """Of the update before a log point alone, by a backward for each term; the training is not touched."""
    settings = recipe(teachers / "edm", objective=objective(), log_every=16, backprop=backprop)
    session = session_of(settings)
    session.update_players(session)
    session.state.images += 8
    assert not [name for name in session.state.meter.totals if name.endswith("_at_x")]
    seen.clear()
    session.update_players(session)
    means = session.state.meter.read(session.accelerator)
    ((_, x),) = seen
    assert means["health/pull_at_x"] == pytest.approx(float((6 * x.detach()).flatten(1).norm(dim=1).mean()), rel=1e-5)
    assert means["health/sid_at_x"] > 0
    unlogged = session_of({**settings, "log_every": 96})
    for _ in range(2):
        unlogged.update_players(unlogged)
        unlogged.state.images += 8
    for ours, other in zip(
        session.state.players["generator"].parameters, unlogged.state.players["generator"].parameters, strict=True
    ):
        assert torch.equal(ours, other)


def test_they_are_in_the_log(teachers: Path, tmp_path: Path) -> None:
    fit_run(recipe(teachers / "edm", objective=objective()), tmp_path)
    record = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    names = {name for name in record if name.startswith("health/") and "nsr" not in name}
    assert names == {
        f"health/{name}"
        for name in ("gap", "fake_error", "teacher_error", "fake_vs_teacher", "fake_loss", "sid_at_x", "pull_at_x")
    }
    assert record["health/fake_loss"] == record["fake/denoising"] / 64
