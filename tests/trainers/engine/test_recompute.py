"""Gradient checkpointing changes no bit of what is trained, and lowers the peak of what a step holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from distill import EDM, Denoiser, UserError, lora
from distill.teachers import EDM2Net, EDMNet, load_denoiser, save_denoiser
from tests.tiny import ADAPTERS, DROPOUT, NETWORK, build_session, recipe, teacher_recipe, tiny_denoiser
from tests.trainers.engine.living import Living
from trainers.engine.networks import recompute_activations
from trainers.engine.session import Session
from trainers.engine.step import advance

EDM_NETWORK = {
    "img_resolution": 8, "img_channels": 1, "label_dim": 10, "channel_mult": [1, 2], "num_blocks": 1,
    "attn_resolutions": [4], "dropout": 0.3, "model_channels": 8,
}  # fmt: skip
DMD2 = {"name": "dmd2", "tap": "encoder", "r1": {"weight": 1.0}}
INSIDE = {**DMD2, "tap": "unet.down_blocks.0.resnets.0"}  # a part that is recomputed as a whole
LORA = {"generator": {**DROPOUT, **ADAPTERS}, "fake": {**DROPOUT, "lr": 1e-2, "lora": {"rank": 3}}}
FULL = {"generator": DROPOUT, "fake": DROPOUT}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": ("unet", FULL),
    "unet, without dropout": ("unet", {}),
    "unet, adapters": ("unet", LORA),
    "unet, adapters, one by one": ("unet", {**LORA, "backprop": "one_by_one"}),
    "unet, adapters, reuse": ("unet", {**LORA, "reuse_samples": True}),
    "unet, adapters, critic, slope": ("unet", {**LORA, "objective": DMD2}),
    "unet, tap inside a block": ("unet", {**LORA, "objective": INSIDE}),
    "unet, bfloat16, adapters": ("unet", {**LORA, "precision": "bfloat16"}),
    "edm": ("edm", {**FULL, "backprop": "one_by_one"}),
    "edm, adapters": ("edm", LORA),
    "edm, adapters, critic, one by one": ("edm", {**LORA, "objective": DMD2, "backprop": "one_by_one"}),
    "edm2": ("edm2", FULL),
}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teachers of every kind of network, with dropout."""
    folder = tmp_path_factory.mktemp("networks")
    save_denoiser(tiny_denoiser(dropout=0.3, layers_per_block=2), folder / "unet")
    torch.manual_seed(0)
    edm2 = {key: value for key, value in EDM_NETWORK.items() if key != "attn_resolutions"}
    made = {
        "edm": EDMNet(model_type="SongUNet", **EDM_NETWORK),
        "edm2": EDM2Net(attn_resolutions=[4], channels_per_head=8, logvar_channels=8, **edm2),
    }
    for name, network in made.items():
        for parameter in network.parameters():  # some are zero in a fresh network
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        save_denoiser(Denoiser(network, EDM(), "edm"), folder / name)
    return folder


def session_of(networks: Path, case: str, on: bool, **more: Any) -> Session:
    teacher, settings = CASES[case]
    settings = {"precision": "float64", **settings, **more, "gradient_checkpointing": on}
    return build_session(recipe(networks / teacher, **settings))


def weights(session: Session, player: str) -> Tensor:
    return torch.cat([p.detach().flatten() for p in session.state.players[player].parameters])


@pytest.mark.parametrize("case", CASES)
def test_the_same_bits_are_trained(case: str, networks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rounds, so that both players' adapters differ and are not zero. Dropout draws the same masks again."""
    both = []
    for on in (False, True):
        session = session_of(networks, case, on)
        with monkeypatch.context() as patch:
            calls = count(patch)
            for _ in range(3):
                advance(session)
        both.append((weights(session, "generator"), weights(session, "fake"), calls[0]))
    (generator, fake, none), (generator_again, fake_again, some) = both
    assert torch.equal(generator, generator_again) and torch.equal(fake, fake_again)
    assert not none and some > 20


def count(patch: pytest.MonkeyPatch) -> list[int]:
    """How many calls of blocks were left to be recomputed."""
    calls, frame = [0], checkpoint._CheckpointFrame.__init__

    def seen(self: Any, *arguments: Any) -> None:
        calls[0] += 1
        frame(self, *arguments)

    patch.setattr(checkpoint._CheckpointFrame, "__init__", seen)
    return calls


@pytest.mark.parametrize("case", ["unet, adapters", "unet, adapters, one by one", "edm, adapters", "edm2"])
def test_the_peak_falls(case: str, networks: Path) -> None:
    """Of all that a step calculates, counted by storages that live, whatever holds them."""
    most = []
    for on in (False, True):
        session = session_of(networks, case, on, batch_size=64, precision="float32")
        advance(session)  # optimizers make their states
        with Living() as living:
            advance(session)
        most.append(living.most)
    print(f"{case}: {most[1] / most[0]:.2f}")
    assert most[1] < 0.8 * most[0]


@pytest.mark.parametrize("name", ["ddpm", "dit", "sd15", "sdxl", "pixart_alpha", "sd3", "flux", "sana"])
def test_two_players_over_one_base(name: str, pipelines: Callable[[str], Path]) -> None:
    """Both ran before either goes back: what is recomputed is under its own adapters, whatever a tap looked at."""
    teacher = load_denoiser(pipelines(name)).double().requires_grad_(False)
    network: Any = teacher.network
    torch.manual_seed(0)
    players = [lora.share_parameters(teacher) for _ in range(2)]
    for player, rank in zip(players, (2, 3), strict=True):
        lora.attach(player.network, lora.Lora(rank=rank))
    adapters = [p for player in players for p in player.parameters() if p.requires_grad]
    for parameter in adapters:
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(2, *network.shape, dtype=torch.float64, requires_grad=True)
    t = teacher.path.time(torch.tensor([0.7, 2.0], dtype=torch.float64))
    cond, both = network.example(2), []
    for on in (False, True):
        if on:
            for player in players:
                recompute_activations(player.network)
        with Living() as living:
            (one, features), two = players[0].with_features(x, t, cond, "encoder"), players[1](x, t, cond)
            (logits,) = players[0].features(one, t, cond, "encoder")
            loss = (two - one).square().sum() + features.sum() + logits.square().sum()
            both.append((living.now, torch.autograd.grad(loss, [x, *adapters], allow_unused=True)))
    (plain, gradients), (recomputed, again) = both
    for ours, theirs in zip(gradients, again, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)
    assert sum(gradient is not None for gradient in again) > 8
    assert recomputed < 0.75 * plain


def test_a_teachers_training_too() -> None:
    both = []
    for on in (False, True):
        settings = teacher_recipe(gradient_checkpointing=on, precision="float64", network={"dropout": 0.3, **NETWORK})
        session = build_session(settings)
        advance(session)
        both.append(weights(session, "teacher"))
    assert torch.equal(*both)


def test_networks_that_cannot() -> None:
    with pytest.raises(UserError, match=r"^gradient_checkpointing: Linear cannot recompute its activations; leave it"):
        recompute_activations(nn.Linear(1, 1))
