"""Players that train adapters: nothing else moves, checkpoints hold nothing else, exports are the merged network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distill import UserError
from distill.lora import Lora, attach, merge
from distill.objectives import OBJECTIVES
from distill.teachers import load_denoiser
from launch.commands.ema import ema
from launch.commands.export import export
from tests.tiny import ADAPTERS, build_session, distillation, experiment, fit_run, opened, recipe
from trainers.checkpoints import checkpoint, saver
from trainers.data.batches import inputs
from trainers.engine.player import EMA, Player, average
from trainers.engine.session import Session
from trainers.recipe.run import Average, Optimizer
from trainers.runs.load import load_trained


def session_of(settings: dict[str, Any]) -> Session:
    return build_session(settings)


def named(session: Session, player: str) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in session.state.players[player].bare.named_parameters()}


def power(*sessions: Session) -> list[list[EMA]]:
    return [list(session.state.power_ema.values()) for session in sessions]


@pytest.mark.parametrize("objective", ["sid", "diff_instruct"])
def test_adapters_alone_move(objective: str, teachers: Path) -> None:
    session = session_of(distillation("sid_lora", teachers, objective=objective))
    before = {player: named(session, player) for player in session.state.players}
    for _ in range(2):
        session.update_players(session)
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
    settings = distillation("sid_lora", teachers, power_ema={"stds": [0.1], "snapshot_every": 8})
    session = session_of(settings)
    session.update_players(session)
    session.state.average(8)
    saver.Saver(tmp_path, 1, session.accelerator).save_now(session)
    folder = tmp_path / f"{8:012d}"
    for player, files in (("generator", ("generator", "ema", "power_ema_0.1")), ("fake", ("fake",))):
        names = {name for name in named(session, player) if "lora_" in name}
        assert all(set(load_file(folder / f"{file}.safetensors")) == names for file in files)
    other = session_of({**settings, "seed": 1})
    checkpoint.restore(other, folder)
    for player in ("generator", "fake"):
        ours, theirs = named(session, player), named(other, player)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for ours, theirs in ((session.state.ema, other.state.ema), *zip(*power(session, other), strict=True)):
        both = zip(ours.module.parameters(), theirs.module.parameters(), strict=True)
        assert all(torch.equal(one, two) for one, two in both)


def test_a_file_never_writes_the_shared_base(teachers: Path, tmp_path: Path) -> None:
    session = session_of(distillation("sid_lora", teachers))
    assert session.teacher is not None
    before = [value.clone() for value in session.teacher.parameters()]
    ema = session.state.ema
    save_file({name: value + 1 for name, value in ema.module.state_dict().items()}, tmp_path / "x.safetensors")
    checkpoint.load_module(ema.module, tmp_path / "x.safetensors", ema.frozen_names)
    assert all(torch.equal(old, new) for old, new in zip(before, session.teacher.parameters(), strict=True))


def test_what_is_merged_shares_no_more(teachers: Path) -> None:
    session = session_of(distillation("sid_lora", teachers))
    assert session.teacher is not None
    before = [value.clone() for value in session.teacher.parameters()]
    session.update_players(session)
    session.update_players(session)
    z, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    generator = session.state.players["generator"].bare
    expected = generator(z, labels)
    merge(generator)
    assert not torch.equal(session.teacher(z, torch.ones(4), labels), expected)
    assert float((generator(z, labels) - expected).abs().max()) < 1e-5
    assert all(torch.equal(old, new) for old, new in zip(before, session.teacher.parameters(), strict=True))


class Normed(nn.Module):
    """A network that puts its weight back after an update, as EDM2's does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.fixed = nn.Linear(3, 3), nn.Parameter(torch.ones(3), requires_grad=False)

    @torch.no_grad()
    def after_step(self) -> None:
        self.layer.get_parameter("weight").mul_(0.5)


@pytest.mark.parametrize("adapters", [False, True])
def test_players_leave_alone_what_they_do_not_train(adapters: bool) -> None:
    network = Normed()
    weight, before = network.layer.weight, network.layer.weight.detach().clone()
    if adapters:
        attach(network, Lora(rank=1))
    player = Player("x", network, Optimizer(lr=1e-3), Accelerator(cpu=True))
    assert "fixed" in player.frozen_names and len(player.parameters) == 2
    network.fixed.requires_grad_(True)  # another's affair
    with player.training():
        assert weight.requires_grad != adapters
    assert network.fixed.requires_grad and not any(p.requires_grad for p in player.parameters)
    assert torch.equal(weight, before if adapters else before / 2)  # once when it became a player
    copy = average(network, Average(), player.frozen_names).module
    shared = {name for name, p in copy.named_parameters() if p.data_ptr() == network.get_parameter(name).data_ptr()}
    assert shared == player.frozen_names


def test_the_export_is_the_trainers_generator(teachers: Path, tmp_path: Path) -> None:
    """Merged: stock diffusers knows nothing of adapters."""
    run = experiment(distillation("sid_lora", teachers, images=32, entry={"nsr": 1.0}))
    session = fit_run(run, tmp_path / "run")
    product = load_trained(tmp_path / "run")
    plain = set(load_denoiser(teachers / "edm").state_dict())
    assert {f"denoiser.{name}" for name in plain} == set(product.model.state_dict())
    noise, labels = inputs(session.dataset, session.batches.micro("x", 0, 0).random)
    trained, merged = session.sampler(noise, labels), product.sampler(noise, labels)
    start = build_session(run).sampler(noise, labels)
    assert float((trained - start).abs().max()) > 0.05
    assert float((trained - merged).abs().max()) < 1e-5
    unmerged = load_trained(tmp_path / "run", merged=False).sampler(noise, labels)
    assert torch.equal(trained, unmerged)
    assert product.export(tmp_path / "export") < 1e-4
    with pytest.raises(UserError, match=r"^export: diffusers loads no adapters into UNet; give another --format$"):
        export(tmp_path / "run", tmp_path / "adapters", format="lora")


def test_an_average_of_another_width(teachers: Path, tmp_path: Path) -> None:
    """Snapshots hold adapters, and so does what is made of them; to be used it is merged."""
    widths = {"power_ema": {"stds": [0.1, 0.2], "snapshot_every": 8}}
    run = tmp_path / "run"
    session = fit_run(distillation("sid_lora", teachers, images=32, **widths), run)
    ema(run, 0.1)
    tracked = session.state.power_ema[0.1].module
    noise, labels = inputs(session.dataset, session.batches.micro("x", 0, 0).random)
    posthoc = load_trained(run, "posthoc/0.1").sampler(noise, labels)
    assert float((posthoc - tracked(noise, labels)).abs().max()) < 1e-3
    assert float((posthoc - session.sampler(noise, labels)).abs().max()) > 1e-2


def test_unknown_targets_are_refused_before_training(teachers: Path) -> None:
    for player in ("generator", "fake"):
        lora = {"lora": {"targets": ["to_q"]}}
        settings = recipe(teachers / "edm", **{player: lora})
        with pytest.raises(UserError, match=r"^lora.targets: no convolution or linear layer is called 'to_q'; it has "):
            opened(settings)


def test_a_teacher_has_no_adapters() -> None:
    from tests.tiny import teacher_recipe

    with pytest.raises(UserError, match=r"unknown key 'optimizer.lora'"):
        experiment(teacher_recipe(optimizer=ADAPTERS))
