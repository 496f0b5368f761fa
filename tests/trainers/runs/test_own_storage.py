"""The storage of a frozen teacher of the user's own class in bfloat16: tried, told, and without a trace in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill import EDM, Denoiser
from tests.tiny import ADAPTERS, build_session, experiment, recipe
from tests.trainers.runs.test_own_precision import Attention, Base, Embeddings, GroupNorms, LayerNorms, save_own
from tests.trainers.runs.test_own_precision import Sinusoids as Leaving
from trainers.engine.session import Session
from trainers.engine.step import advance
from trainers.plan.trace import plan
from trainers.recipe.run import Run
from trainers.runs import distillation
from trainers.runs.storage import _cast_names

pytestmark = pytest.mark.usefixtures("trusted_code")


class Exact(Base):
    """A network that computes one product in float32, whatever dtype its weight has."""

    def block(self, hidden: Tensor, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return hidden + F.linear(x.flatten(1), self.enter.weight.float())


class Tied(Base):
    """A table whose transpose is a linear layer too."""

    def make(self) -> None:
        super().make()
        self.table, self.back = nn.Embedding(10, 16), nn.Linear(16, 10, bias=False)
        self.back.weight = self.table.weight

    def block(self, hidden: Tensor, x: Tensor) -> Tensor:
        return hidden + self.back(hidden).softmax(-1) @ self.table.weight


class Vision(nn.Module):
    """A small ViT: patches with learned positions, a table of classes, and torch's encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.leave = nn.Conv2d(1, 16, 2, 2), nn.Linear(16, 4)
        self.classes, self.positions = nn.Embedding(10, 16), nn.Parameter(torch.randn(16, 16) / 4)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.time, self.norm = nn.Linear(1, 16), nn.LayerNorm(16)

    def forward(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        extra = self.classes(labels) + self.time(time[:, None] / 1000)
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions + extra[:, None]
        out = self.leave(self.norm(self.encoder(tokens)))
        return F.pixel_shuffle(out.transpose(1, 2).unflatten(2, (4, 4)), 2)


def session_of(kind: Any, folder: Path, **changes: Any) -> Session:
    save_own(kind, folder)
    return build_session(recipe(folder, precision="bfloat16", **changes))


LINES = {
    LayerNorms: "6 of 10 tensors are stored in bfloat16, as autocast uses them; the others stay in float32",
    Vision: "22 of 34 tensors are stored in bfloat16, as autocast uses them; the others stay in float32",
    Exact: "its tensors stay in float32: in bfloat16 its outputs are others, since it uses weights where autocast does"
    " not cast them",
    Leaving: "its tensors stay in float32: it fails with weights in bfloat16 (RuntimeError: ",
}


@pytest.mark.parametrize("kind", LINES)
def test_the_choice_is_told(kind: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session = session_of(kind, tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"teacher: {LINES[kind]}")
    assert session.teacher is not None
    low = sum(p.dtype == torch.bfloat16 for p in session.teacher.parameters())
    assert f"{low} of" in line if low else "stay in float32:" in line


@pytest.mark.parametrize("players", [{}, {"generator": ADAPTERS, "fake": ADAPTERS}])
@pytest.mark.parametrize("kind", [LayerNorms, GroupNorms, Embeddings, Attention, Vision])
def test_the_storage_leaves_no_trace_in_training(
    kind: Any, players: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of players of their own, and of adapters on the weights that are stored in bfloat16."""
    found = []
    for stored in (True, False):
        with monkeypatch.context() as patch:
            if not stored:
                patch.setattr(distillation, "low_names", lambda *arguments: frozenset())
            session = session_of(kind, tmp_path, **players)
        assert session.teacher is not None
        assert any(p.dtype == torch.bfloat16 for p in session.teacher.parameters()) == stored
        for _ in range(3):
            advance(session)
        found.append(torch.cat([p.flatten() for one in session.state.players.values() for p in one.parameters]))
    assert torch.equal(*found) and bool(found[0].isfinite().all())


@pytest.mark.parametrize("kind", [LayerNorms, Vision])
@pytest.mark.parametrize("dropout", ["off", "teacher"])
def test_the_loss_of_the_fake_falls(kind: Any, dropout: str, tmp_path: Path) -> None:
    still = {"lr": 1e-9}
    session = session_of(kind, tmp_path, generator=still, fake={"lr": 3e-3, "dropout": dropout}, images=800)
    losses = []
    for _ in range(4):
        for _ in range(25):
            advance(session)
        losses.append(session.state.meter.read(session.accelerator)["fake/denoising"])
    assert session.state.players["fake"].counters()["skipped"] == 0
    assert losses[2] < 0.9 * losses[0], losses


def test_a_table_that_a_layer_shares_is_a_table() -> None:
    """No folder of weights takes such a class, but a Python caller may give one."""
    assert _cast_names(Denoiser(Tied(), EDM(), "edm")) == {
        f"network.module.{one}.{part}" for one in ("enter", "time", "leave") for part in ("weight", "bias")
    }


def test_float32_has_no_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_own(LayerNorms, tmp_path)
    session = build_session(recipe(tmp_path))
    assert session.teacher is not None and {p.dtype for p in session.teacher.parameters()} == {torch.float32}
    assert capsys.readouterr().err == ""


def test_a_plan_counts_float32(tmp_path: Path) -> None:
    save_own(LayerNorms, tmp_path)
    run = experiment(recipe(tmp_path, precision="bfloat16"))
    assert isinstance(run, Run)
    weights = sum(p.numel() for p in build_session(run).state.players["fake"].parameters)
    assert plan(run, 1).rest["teacher: weights"] >= 4 * weights
