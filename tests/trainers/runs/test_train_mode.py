"""Train mode of a teacher's class: who trains in it, what is told of it, and that telling changes nothing."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from distill import EDM, Denoiser
from distill.errors import UserError
from distill.objectives import Denoisers
from distill.teachers import OwnNet, save_denoiser
from tests.tiny import ADAPTERS, DROPOUT, build_session, distillation, launch, recipe
from trainers.engine.session import Session
from trainers.engine.step import advance, fake_terms, seed_dropout, update
from trainers.runs.probe import probe_teacher

pytestmark = pytest.mark.usefixtures("trusted_code")  # the classes below are named in a teacher's folder


class Plain(nn.Module):
    """A network of flat pixels with a part that its subclasses make and call."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave, self.part = nn.Linear(64, 16), nn.Linear(16, 64), self.make()

    def make(self) -> nn.Module:
        return nn.LayerNorm(16)

    def use(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.part(hidden)
        return out

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        out: Tensor = self.leave(self.use(self.enter(x.flatten(1))))
        return out.view_as(x)


class Norm(Plain):
    def make(self) -> nn.Module:
        return nn.BatchNorm1d(16)


class Functional(Plain):
    def use(self, hidden: Tensor) -> Tensor:
        return F.dropout(hidden, 0.2, self.training)


class OfAttention(Plain):
    def use(self, hidden: Tensor) -> Tensor:
        q = hidden[:, None, None]
        out = F.scaled_dot_product_attention(q.expand(-1, 1, 8, 16), q, q, dropout_p=0.2 * self.training)
        return out.mean((1, 2))


class Encoder(Plain):
    """A layer with a fast path of its own in eval mode, and no dropout."""

    def make(self) -> nn.Module:
        return nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)

    def use(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.part(hidden[:, None])
        return out[:, 0]


class Failing(Plain):
    def use(self, hidden: Tensor) -> Tensor:
        if self.training:
            raise KeyError("targets")
        return hidden


def own(kind: type[Plain], folder: Path, **changes: Any) -> Session:
    torch.manual_seed(0)
    network = OwnNet(f"{__name__}:{kind.__name__}", {}, (1, 8, 8), 10)
    save_denoiser(Denoiser(network, EDM(), "x0" if kind is Zero else "edm"), folder)
    return build_session(recipe(folder, **changes))


class Zero(Plain):
    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        return 0 * super().forward(x, time, labels)


OFF = "generator and fake train without it; dropout: teacher turns it on"
ON = "generator and fake train with it; dropout: off turns it off"
NUMBER = r"difference \d+(\.\d+)? %, such as dropout"


@pytest.mark.parametrize(
    ("kind", "players", "line"),
    [
        (Norm, (), rf"\({NUMBER}\): {OFF}"),
        (Functional, (), rf"\({NUMBER}\): {OFF}"),
        (OfAttention, ("generator", "fake"), rf"\({NUMBER}\): {ON}"),
        (Functional, ("fake",), rf"\({NUMBER}\): generator trains without it, fake with it"),
        (Failing, (), rf"\(it fails there\): {OFF}"),
        (Plain, (), None),
        (Encoder, (), None),
        (Zero, (), None),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_train_mode_is_told_and_changes_nothing(
    kind: type[Plain],
    players: tuple[str, ...],
    line: str | None,
    precision: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    session = own(kind, tmp_path / "own", precision=precision, **dict.fromkeys(players, DROPOUT))
    assert session.teacher is not None
    before = {name: value.clone() for name, value in session.teacher.state_dict().items()}
    state = torch.get_rng_state()
    capsys.readouterr()
    probe_teacher(session)
    told = capsys.readouterr().err.splitlines()
    expected = [] if line is None else [f"teacher: its class computes otherwise in train mode {line}"]
    assert len(told) == len(expected)
    assert all(re.fullmatch(pattern, text) for pattern, text in zip(expected, told, strict=True)), told
    after = session.teacher.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(state, torch.get_rng_state()) and not any(m.training for m in session.teacher.modules())


def test_the_difference_is_that_of_the_estimates(teachers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session = build_session(recipe(teachers / "dropout"))
    teacher, batch = session.teacher, session.batches.micro("probe", 0, 0)
    assert teacher is not None
    probe_teacher(session)
    t, x = torch.full((8,), 2.5, dtype=torch.float64), 2.5 * batch.noise
    with torch.no_grad():
        expected = teacher(x, t, batch.cond)
        torch.manual_seed(0)
        dropped = teacher.train()(x, t, batch.cond)
    percent = 100 * float((dropped - expected).norm() / expected.norm())
    assert f"(difference {percent:.2g} %" in capsys.readouterr().err and percent > 1


@pytest.mark.parametrize("kind", [Norm, Functional, OfAttention])
@pytest.mark.parametrize("dropout", ["off", "teacher"])
def test_off_trains_the_network_that_is_used(kind: type[Plain], dropout: str, tmp_path: Path) -> None:
    """It draws no masks, and statistics stay those of the teacher. Train mode has either."""
    session = own(kind, tmp_path, fake={"lr": 1e-3, "dropout": dropout})
    fake = session.state.players["fake"].bare
    before = [buffer.clone() for buffer in fake.buffers()]
    seed_dropout(session, "fake 0")
    seeded = torch.get_rng_state()
    update(session, "fake", "fake 0", partial(fake_terms, session, cast(Denoisers, session.nets), 0, None))
    kept = all(torch.equal(old, new) for old, new in zip(before, fake.buffers(), strict=True))
    assert (kept and torch.equal(seeded, torch.get_rng_state())) == (dropout == "off")


def test_the_fast_path_of_an_encoder_trains(tmp_path: Path) -> None:
    """In eval mode torch has a path without gradients, which a player in training must not take."""
    session = own(Encoder, tmp_path)
    before = [p.clone() for p in session.state.players["fake"].parameters]
    advance(session)
    after = session.state.players["fake"].parameters
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True) if b.abs().sum())


def test_adapters_and_sharded_teachers_are_probed_too(teachers: Path, tmp_path: Path) -> None:
    """One line, from one of two processes."""
    settings = distillation("sid", teachers, sharding={}, images=8, fake=ADAPTERS, generator=ADAPTERS)
    settings["teacher"] = str(teachers / "dropout")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    arguments = ["-m", "launch.main", "train", str(tmp_path / "run.yaml"), "--folder", str(tmp_path / "run")]
    job = launch(arguments, tmp_path / "out.txt", world=2)
    assert job.finish() == 0, job.text
    assert job.text.count("teacher: its class computes otherwise in train mode (difference") == 1


def test_a_number_is_the_probability_of_all_dropout_layers(teachers: Path) -> None:
    """Of the player alone: the teacher and the other player keep theirs."""
    settings = recipe(
        teachers / "dropout", generator={"lr": 1e-3, "dropout": 0.05}, fake={"lr": 1e-3, "dropout": "teacher"}
    )
    session = build_session(settings)
    rates = {
        name: {module.p for module in network.modules() if isinstance(module, nn.Dropout)}
        for name, network in {
            "generator": session.state.players["generator"].bare,
            "fake": session.state.players["fake"].bare,
            "teacher": cast(nn.Module, session.teacher),
        }.items()
    }
    assert rates["generator"] == {0.05} and rates["fake"] == rates["teacher"] != {0.05}
    with session.state.players["generator"].training():
        assert session.state.players["generator"].bare.training


@pytest.mark.parametrize(
    ("rate", "words"),
    [(0.0, "dropout: must be above 0 and below 1, off or teacher, got 0.0$"), (1.5, "dropout: must be above 0 and b")],
)
def test_a_number_outside_its_range_is_refused(rate: float, words: str, teachers: Path) -> None:
    with pytest.raises(UserError, match=words):
        build_session(recipe(teachers / "edm", generator={"lr": 1e-3, "dropout": rate}))
