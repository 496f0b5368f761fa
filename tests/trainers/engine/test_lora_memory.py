"""Three players over one frozen base: what is shared, and what that saves on a network like SDXL's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill import EDM, Denoiser
from distill.conditions import Condition
from distill.networks.network import Network
from tests.tiny import build_session, distillation, recipe
from tests.trainers.engine.living import stored
from trainers.engine.player import Player
from trainers.engine.session import Session
from trainers.runs import distillation as building
from trainers.runs import open as opening

LORA = {"lr": 1e-3, "lora": {"rank": 8}}  # of widths 64 and 128; 64 of 320 ... 1280 in DMD2's SDXL


class SDXL(Network):
    """A U-Net with SDXL's added conditions; its text embeddings are functions of the label."""

    shape, classes = (1, 8, 8), 10

    def __init__(self) -> None:
        from diffusers import UNet2DConditionModel

        super().__init__()
        self.model = UNet2DConditionModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(64, 128),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(4, 8),
            use_linear_projection=True,
            cross_attention_dim=64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=64 + 6 * 8,
        )

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        assert cond.labels is not None
        text = torch.cos(cond.labels[:, None].to(x.dtype) * torch.arange(1, 65, device=x.device))
        added = {"text_embeds": text, "time_ids": x.new_tensor([8, 8, 0, 0, 8, 8]).expand(len(x), 6)}
        prompt = text[:, None].expand(-1, 7, -1)
        output: Tensor = self.model(x, time, prompt, added_cond_kwargs=added, return_dict=False)[0]
        return output


@pytest.fixture
def sdxl(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(folder: str, weights: bool = True) -> Denoiser:
        torch.manual_seed(0)
        return Denoiser(SDXL(), EDM(), "edm").eval()

    monkeypatch.setattr(opening, "load_denoiser", load)
    monkeypatch.setattr(building, "teacher_hash", lambda folder: "sdxl")


def held(session: Session) -> Iterator[Tensor]:
    """Weights, buffers, gradients, optimizer states and averages of everything in a session."""
    state = session.state
    assert session.teacher is not None
    averages = [ema.module for ema in (state.ema, *state.power_ema.values())]
    for module in (session.teacher, *averages, *(player.bare for player in state.players.values())):
        for parameter in module.parameters():
            yield from (tensor for tensor in (parameter, parameter.grad) if tensor is not None)
        yield from module.buffers()
    for player in state.players.values():
        for states in player.optimizer.state.values():
            yield from (value for value in states.values() if isinstance(value, Tensor))


def peak(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> int:
    """The most bytes held in two rounds, looked at where they are: before a player steps."""
    session = build_session(settings)
    most, step = [0], Player.step

    def look(self: Player, norm: Tensor, lr: float) -> None:
        most[0] = max(most[0], stored(held(session)))
        step(self, norm, lr)

    with monkeypatch.context() as patch:
        patch.setattr(Player, "step", look)
        for _ in range(2):
            session.update_players(session)
            session.state.average(session.run.batch_size)
    return max(most[0], stored(held(session)))


@pytest.mark.parametrize(("precision", "bound"), [("float32", 0.25), ("bfloat16", 0.20)])
def test_adapters_hold_under_45_percent(
    precision: str, bound: float, sdxl: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"precision": precision, "data": {"name": "digits"}}
    full = peak(recipe("sdxl", **settings), monkeypatch)
    adapters = peak(recipe("sdxl", **settings, generator=LORA, fake=LORA), monkeypatch)
    fake = peak(recipe("sdxl", **settings, fake=LORA), monkeypatch)
    print(
        f"{precision}: {adapters / full:.3f} of {full / 2**20:.1f} MiB; adapters of the fake alone: {fake / full:.3f}"
    )
    assert adapters < bound * full < 0.45 * full
    assert adapters < fake < 0.75 * full


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("name", ["sid_lora", "fake_lora"])
def test_the_base_is_the_teachers(name: str, precision: str, teachers: Path) -> None:
    """One storage, in the precision of compute, after training and a move as before; adapters are float32 or more."""
    session = build_session(distillation(name, teachers, precision=precision))
    assert session.teacher is not None
    master = torch.float64 if precision == "float64" else torch.float32
    base = {value.data_ptr(): value for value in session.teacher.parameters()}
    before = [value.clone() for value in base.values()]
    assert all(value.dtype == getattr(torch, precision) for value in base.values())
    session.update_players(session)
    for player in session.state.players.values():
        networks = [player.bare] + ([session.model] if player.name == "generator" else [])
        adapted = player.name == "fake" or name == "sid_lora"
        for network in networks:
            network.to("cpu")  # to where it is
            kept = {n: p for n, p in network.named_parameters() if n in player.frozen_names}
            assert {p.data_ptr() for p in kept.values()} == (set(base) if adapted else set())
            trained = [p for n, p in network.named_parameters() if n not in player.frozen_names]
            assert {p.dtype for p in trained} == {master} and not base.keys() & {p.data_ptr() for p in trained}
            buffers = {b.data_ptr() for b in network.buffers()}
            assert not buffers & {b.data_ptr() for b in session.teacher.buffers()}
    assert all(torch.equal(old, new) for old, new in zip(before, base.values(), strict=True))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_first_outputs_are_the_teachers(precision: str, teachers: Path) -> None:
    x, t, cond = torch.randn(4, 1, 8, 8), torch.full((4,), 0.7), torch.arange(4)
    session = build_session(distillation("sid_lora", teachers, precision=precision))
    assert session.teacher is not None
    expected = session.teacher(x, t, cond)
    assert torch.equal(session.state.players["fake"].bare(x, t, cond), expected)
    assert torch.equal(session.state.players["generator"].bare.denoiser(x, t, cond), expected)  # type: ignore[operator]
    session.update_players(session)
    fake = session.state.players["fake"].bare(x, t, cond)
    assert torch.equal(session.teacher(x, t, cond), expected) and not torch.equal(fake, expected)
