"""Losses and first gradients of compiled networks agree with those of others. Each case takes a compiler a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import fresh_cache

from distill import Random
from distill.compilation import compile_whole
from tests import families
from tests.tiny import DISTILLATIONS, build_session, distillation, recipe
from tests.trainers.interrupted import assert_same, fit, interrupted
from trainers.engine.networks import compiling
from trainers.engine.player import Player
from trainers.engine.step import advance
from trainers.recipe.run import Compile

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("trusted_code")]

TOLERANCE = 1e-5


def first_round(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the losses of a round without steps, and the gradients of the first update of each player.

    The round ends at a log point, where several terms of a loss have a gradient each.
    The fake is moved away from the teacher: a loss that is their difference would be rounding errors alone.
    """
    session, gradients = build_session(settings), dict[str, Tensor]()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in session.state.players["fake"].parameters if "fake" in session.state.players else ():
            size = parameter.square().mean().sqrt() or 1.0  # those of an adapter begin at 0
            parameter.add_(0.1 * size * torch.randn(parameter.shape, generator=random))

    def keep(player: Player, norm: Tensor, lr: float) -> None:
        found = [p.grad.flatten() for p in player.parameters if p.grad is not None]
        gradients.setdefault(player.name, torch.cat(found))
        player.optimizer.zero_grad()

    monkeypatch.setattr(Player, "step", keep)
    advance(session)
    return session.state.meter.read(session.accelerator), gradients


def assert_agrees(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (losses, gradients), (theirs, compiled) = (
        first_round({**settings, "compile": mode, "log_every": settings["batch_size"]}, monkeypatch)
        for mode in (False, True)
    )
    torch._dynamo.reset()
    assert losses.keys() == theirs.keys() and gradients.keys() == compiled.keys()
    for name, loss in losses.items():
        assert theirs[name] == pytest.approx(loss, rel=TOLERANCE), name
    for name, gradient in gradients.items():
        assert float((compiled[name] - gradient).norm() / gradient.norm()) < TOLERANCE, name


@pytest.mark.parametrize("objective", DISTILLATIONS)
def test_objectives(objective: str, teachers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_agrees(distillation(objective, teachers), monkeypatch)


@pytest.mark.parametrize("objective", ["sid", "dmd2"])
@pytest.mark.parametrize("name", families.TEACHERS)
def test_networks(name: str, objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = "fgm" if objective == "sid" and name.startswith(families.FLOWS) else objective
    families.TEACHERS[name](tmp_path / "teacher")
    settings = families.recipe(name, objective, tmp_path / "teacher", tmp_path, real=objective == "dmd2")
    assert_agrees(settings, monkeypatch)


def test_normal_numbers() -> None:
    numbers = Random.at(0, torch.arange(5))
    with compiling((), Compile()):
        fused = numbers.normal(3, 7)
    assert torch.allclose(fused, numbers.normal(3, 7), rtol=1e-5, atol=1e-6)


def test_a_backward_runs_again_whatever_torch_has_cached() -> None:
    """By default torch compiles backwards that run once, and would take them from its cache under other settings."""
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))

    def network(x: Tensor) -> Tensor:
        for _ in range(3):
            x = (x @ weight).tanh().sin()
        return x

    x = weight[:8].clone().requires_grad_()
    with fresh_cache():
        defaults = torch._functorch.config.patch(donated_buffer=True), torch.compiler.config.patch(cache_key_tag="")
        with defaults[0], defaults[1]:
            torch.compile(network, fullgraph=True, dynamic=False)(x).sum().backward()
        torch._dynamo.reset()
        loss = compile_whole(network)(x).sum()
        first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and torch.allclose(first, x.grad, rtol=1e-4)


def test_a_resume_is_exact(teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = recipe(teachers / "edm", images=48, compile=True)
    fit(settings, tmp_path / "whole")
    interrupted(settings, tmp_path / "cut", 24, monkeypatch)
    fit(settings, tmp_path / "cut", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "cut")
