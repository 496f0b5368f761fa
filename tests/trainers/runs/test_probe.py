"""A teacher that fails at some time is found before training, at the price of a few forwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import trainers
from distill import EDM, Denoiser
from distill.conditions import Condition
from distill.errors import UserError
from distill.networks.network import Network
from distill.objectives.dmd2 import DMD2
from distill.objectives.guided import Guided
from tests.tiny import DISTILLATIONS, build_session, distillation, fit_run, recipe
from trainers.checkpoints import checkpoint
from trainers.engine.session import Session
from trainers.runs import probe
from trainers.runs.probe import laws, probe_teacher


class Failing(Network):
    """A network that is not finite where `fails` holds for its noise level."""

    def __init__(self, fails: Callable[[Tensor], Tensor], value: float = math.nan) -> None:
        super().__init__()
        self.shape = (1, 8, 8)
        self.layer, self.fails, self.value = nn.Conv2d(1, 1, 3, padding=1), fails, value

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        sigma = (time / 250).exp()
        return torch.where(self.fails(sigma)[:, None, None, None], self.value, self.layer(x))


def train(network: nn.Module, folder: Path, **changes: Any) -> None:
    settings = recipe("object", images=8, **changes)
    del settings["teacher"]
    trainers.train(
        settings,
        folder,
        accelerator=Accelerator(cpu=True),
        teacher=Denoiser(network, EDM(), "edm"),
        data={"name": "data_free", "shape": [1, 8, 8]},
    )


FAILS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "at the noisy end": (lambda sigma: sigma > 60, r"t = \d\d(\.\d+)? on EDM \(noise-to-signal ratio \d\d"),
    "at the clean end": (lambda sigma: sigma < 0.004, r"t = 0\.00\d+ on EDM"),
    "in between": (lambda sigma: (sigma > 0.3) & (sigma < 0.7), r"t = 0\.\d+ on EDM"),
}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", FAILS)
def test_a_teacher_that_fails_is_found_with_its_time(where: str, value: float, tmp_path: Path) -> None:
    fails, time = FAILS[where]
    with pytest.raises(UserError, match=rf"^teacher: 'object' gives estimates that are not finite at {time}") as caught:
        train(Failing(fails, value), tmp_path)
    assert "\n" not in str(caught.value)
    assert checkpoint.folders(tmp_path / "checkpoints") == []


def test_the_time_of_the_generator_is_asked_too(tmp_path: Path) -> None:
    line = r"^teacher: 'object' gives samples that are not finite at the generator's time t = 2.5 on EDM; check its"
    with pytest.raises(UserError, match=line):
        train(Failing(lambda sigma: (sigma - 2.5).abs() < 0.01), tmp_path)


def test_a_probe_takes_few_forwards(teachers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two laws and the ramp of a sampler, of 16 quantiles each, eight at a time; then both modes of the first batch."""
    session = build_session(recipe(teachers / "edm"))
    assert session.teacher is not None
    calls: list[Tensor] = []
    forward = session.teacher.network.forward
    monkeypatch.setattr(
        session.teacher.network, "forward", lambda *arguments: (calls.append(arguments[1]), forward(*arguments))[1]
    )
    probe_teacher(session)
    assert [len(times) for times in calls] == [8] * 8


@pytest.mark.parametrize("name", DISTILLATIONS)
def test_a_probe_changes_nothing(name: str, teachers: Path) -> None:
    """Neither the weights, nor torch's random numbers, nor the mode of a network. It passes healthy teachers."""
    session = build_session(distillation(name, teachers))
    before, state = contents(session), torch.get_rng_state()
    probe_teacher(session)
    after = contents(session)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(state, torch.get_rng_state())
    assert not any(player.bare.training for player in session.state.players.values())


def contents(session: Session) -> dict[str, Tensor]:
    assert session.nets is not None
    networks: dict[str, Any] = {name: player.bare for name, player in session.state.players.items()}
    networks |= {"teacher": session.teacher, "ema": session.state.ema.module, **session.nets.frozen}
    found = {f"{one} {key}": v.clone() for one, net in networks.items() for key, v in net.state_dict().items()}
    return found | {name: value.clone() for name, value in session.state.memory.items()}


def test_the_laws_of_inner_objectives_are_found() -> None:
    inner = DMD2()
    assert set(laws(Guided(objective=inner))) == {inner.times, inner.fake_times} == set(laws(inner))


def test_only_a_run_that_begins_is_probed(teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = recipe(teachers / "edm", images=8)
    fit_run(settings, tmp_path)
    monkeypatch.setattr(probe, "_bad_times", None)
    fit_run({**settings, "images": 16}, tmp_path, resume=True)
