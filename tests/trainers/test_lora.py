"""Players that train adapters: nothing else moves, checkpoints hold nothing else, exports are the merged network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from distill import UserError
from distill.objectives import OBJECTIVES
from launch.ema import ema
from launch.export import export_product
from tests.tiny import ADAPTERS, distillation, experiment, recipe
from trainers import checkpoint
from trainers.data import Digits
from trainers.data.batches import inputs
from trainers.distillation import check_objective, load_teacher
from trainers.loop import build, fit
from trainers.products import load_product
from trainers.run import Run
from trainers.session import Session


def session_of(settings: dict[str, Any]) -> Session:
    return build(experiment(settings), Accelerator(cpu=True))


def named(session: Session, player: str) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in session.state.players[player].bare.named_parameters()}


@pytest.mark.parametrize("objective", ["sid", "diff_instruct"])
def test_adapters_alone_move(objective: str, teachers: Path) -> None:
    session = session_of(distillation("sid_lora", teachers, objective=objective))
    before = {player: named(session, player) for player in session.state.players}
    for _ in range(2):
        session.step()
    for player, weights in before.items():
        for name, now in named(session, player).items():
            assert torch.equal(now, weights[name]) == ("lora_" not in name), name
        assert all(p.grad is None for p in session.state.players[player].bare.parameters())  # none was ever asked for
        bare = session.state.players[player].bare
        assert not bare.training and not any(p.requires_grad for p in bare.parameters())
        assert len(session.state.players[player].optimizer.state) == sum("lora_" in name for name in weights)


def test_the_first_samples_are_the_teachers(teachers: Path) -> None:
    noise, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    plain, adapted = (session_of(distillation(name, teachers)) for name in ("sid", "sid_lora"))
    assert torch.equal(plain.sampler(noise, labels), adapted.sampler(noise, labels))


def test_a_head_trains_beside_the_adapters(teachers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A critic's own parameters are no part of the teacher: they train whole."""
    from distill.discriminator import Critic

    head = torch.nn.Conv2d(8, 1, 1)
    monkeypatch.setattr(OBJECTIVES["sid"], "build_fake", lambda self, fake: Critic(fake, "encoder", head))
    fake = session_of(distillation("sid_lora", teachers)).state.players["fake"]
    assert sum(one is two for one in fake.parameters for two in head.parameters()) == 2
    assert len(fake.parameters) == 2 + sum("lora_" in name for name, _ in fake.bare.named_parameters())


def test_checkpoints_hold_what_trains(teachers: Path, tmp_path: Path) -> None:
    session = session_of(distillation("sid_lora", teachers))
    session.step()
    session.state.images += 8
    checkpoint.save(session, tmp_path, keep=1)
    names = set(load_file(tmp_path / f"{8:012d}/generator.safetensors"))
    assert names == {name for name in named(session, "generator") if "lora_" in name}
    other = session_of(distillation("sid_lora", teachers, seed=1))
    checkpoint.restore(other, tmp_path / f"{8:012d}")
    for player in ("generator", "fake"):
        ours, theirs = named(session, player), named(other, player)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_export_is_the_trainers_generator(teachers: Path, tmp_path: Path) -> None:
    """Merged: stock diffusers knows nothing of adapters."""
    run = experiment(distillation("sid_lora", teachers, images=32, entry={"nsr": 1.0}))
    session = fit(run, tmp_path / "run", Accelerator(cpu=True))
    product = load_product(tmp_path / "run")
    plain = set(load_teacher(run, Digits().load()).state_dict())  # type: ignore[arg-type]
    assert {f"denoiser.{name}" for name in plain} == set(product.model.state_dict())
    noise, labels = inputs(session.dataset, session.batches.micro("x", 0, 0).random)
    trained, merged = session.sampler(noise, labels), product.sampler(noise, labels)
    start = build(run, Accelerator(cpu=True)).sampler(noise, labels)
    assert float((trained - start).abs().max()) > 0.05
    assert float((trained - merged).abs().max()) < 1e-4
    assert export_product(product, tmp_path / "run", tmp_path / "export") < 1e-4


def test_an_average_of_another_width(teachers: Path, tmp_path: Path) -> None:
    """Snapshots hold adapters, and so does what is made of them; to be used it is merged."""
    widths = {"power_ema": {"stds": [0.1, 0.2], "snapshot_every": 8}}
    run = tmp_path / "run"
    session = fit(experiment(distillation("sid_lora", teachers, images=32, **widths)), run, Accelerator(cpu=True))
    ema(run, 0.1)
    tracked = session.state.power_ema[0.1].module
    noise, labels = inputs(session.dataset, session.batches.micro("x", 0, 0).random)
    posthoc = load_product(run, "posthoc/0.1").sampler(noise, labels)
    assert float((posthoc - tracked(noise, labels)).abs().max()) < 1e-3
    assert float((posthoc - session.sampler(noise, labels)).abs().max()) > 1e-2


def test_unknown_targets_are_refused_before_training(teachers: Path) -> None:
    for player in ("generator", "fake"):
        lora = {"lora": {"targets": ["to_q"]}}
        run = experiment(recipe(teachers / "edm", **{player: lora}))
        assert isinstance(run, Run)
        with pytest.raises(UserError, match=r"^lora.targets: no convolution or linear layer is called 'to_q'; it has "):
            check_objective(run, Digits().load(), load_teacher(run, Digits().load()))


def test_a_teacher_has_no_adapters() -> None:
    from tests.tiny import teacher_recipe

    with pytest.raises(UserError, match=r"unknown key 'optimizer.lora'"):
        experiment(teacher_recipe(optimizer=ADAPTERS))
