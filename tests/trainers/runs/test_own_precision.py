"""Networks of a user's own train in bfloat16, whatever they are made of, and their tables stay precise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trainers
from distill import EDM, Denoiser
from distill.teachers import OwnNet, save_denoiser
from tests.tiny import build_session, recipe

pytestmark = pytest.mark.usefixtures("trusted_code")  # the classes below are named in a teacher's folder

SHAPE = (1, 8, 8)
WIDTH = 16


class Base(nn.Module):
    """A network of flat pixels with one block in the middle, which the subclasses make."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.time, self.leave = nn.Linear(64, WIDTH), nn.Linear(2 * 8, WIDTH), nn.Linear(WIDTH, 64)
        self.make()

    def make(self) -> None:
        self.register_buffer("frequencies", torch.logspace(0, -3, 8))

    def waves(self, time: Tensor) -> Tensor:
        angles = time[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], 1)

    def block(self, hidden: Tensor, x: Tensor) -> Tensor:
        return hidden

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        hidden = self.block(self.enter(x.flatten(1)) + self.time(self.waves(time)), x)
        out: Tensor = self.leave(hidden.tanh())
        return out.view_as(x)


class LayerNorms(Base):
    """One norm sees the float32 input, one sees what autocast has made."""

    def make(self) -> None:
        super().make()
        self.first, self.second = nn.LayerNorm(64), nn.LayerNorm(WIDTH)

    def block(self, hidden: Tensor, x: Tensor) -> Tensor:
        return self.second(self.enter(self.first(x.flatten(1))) + hidden)


class BatchNorms(Base):
    def make(self) -> None:
        super().make()
        self.first, self.second = nn.BatchNorm2d(1), nn.BatchNorm1d(WIDTH)

    def block(self, hidden: Tensor, x: Tensor) -> Tensor:
        return self.second(self.enter(self.first(x).flatten(1)) + hidden)


class GroupNorms(Base):
    def make(self) -> None:
        super().make()
        self.convolution, self.first, self.second = (
            nn.Conv2d(1, 4, 3, padding=1),
            nn.GroupNorm(1, 1),
            nn.GroupNorm(2, 4),
        )

    def block(self, hidden: Tensor, x: Tensor) -> Tensor:
        return hidden + self.enter(self.second(self.convolution(self.first(x))).mean(1).flatten(1))


class OtherNorms(Base):
    def make(self) -> None:
        super().make()
        self.first, self.second = nn.RMSNorm(64), nn.InstanceNorm2d(1, affine=True)
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(64, WIDTH))

    def block(self, hidden: Tensor, x: Tensor) -> Tensor:
        return hidden + self.last(self.first(self.second(x).flatten(1)))


class Embeddings(Base):
    """A table of classes, learned positions, and a fixed table of frequencies that is a parameter."""

    def make(self) -> None:
        self.frequencies = nn.Parameter(torch.logspace(0, -3, 8), requires_grad=False)
        self.classes, self.positions = nn.Embedding(10, WIDTH), nn.Parameter(torch.randn(8, WIDTH) / 4)
        self.row = nn.Linear(8, WIDTH)

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        assert self.frequencies.dtype == torch.float32 and labels is not None
        self.labels = labels
        return super().forward(x, time, labels)

    def block(self, hidden: Tensor, x: Tensor) -> Tensor:
        rows = torch.lerp(self.row(x[:, 0]).float(), self.positions.expand(len(x), 8, WIDTH), 0.5)
        return hidden + self.classes(self.labels) + rows.mean(1)


class Sinusoids(Base):
    """Frequencies in float64, with a part that leaves autocast to stay precise."""

    def make(self) -> None:
        self.register_buffer("frequencies", torch.logspace(0, -3, 8, dtype=torch.float64))
        self.precise = nn.Sequential(nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 16))

    def waves(self, time: Tensor) -> Tensor:
        assert self.frequencies.dtype in (torch.float32, torch.float64) and time.dtype == torch.float32
        angles = time.double()[:, None] * self.frequencies
        with torch.autocast(time.device.type, enabled=False):
            return self.precise(torch.cat([angles.sin(), angles.cos()], 1).float())


class Attention(Base):
    """torch's attention, and its module of attention after a norm."""

    def make(self) -> None:
        super().make()
        self.rows, self.norm = nn.Linear(8, 3 * WIDTH), nn.LayerNorm(WIDTH)
        self.heads = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def block(self, hidden: Tensor, x: Tensor) -> Tensor:
        q, k, v = self.rows(x[:, 0]).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        mixed = self.norm(F.scaled_dot_product_attention(q, k.float(), v).transpose(1, 2).flatten(2))
        return hidden + self.heads(mixed, mixed, mixed)[0].mean(1)


class Masked(Base):
    """Attention of each row to those above it, with the mask in a buffer that is saved."""

    def make(self) -> None:
        super().make()
        self.rows = nn.Linear(8, 3 * WIDTH)
        self.register_buffer("mask", torch.full((8, 8), -torch.inf).triu(1))

    def block(self, hidden: Tensor, x: Tensor) -> Tensor:
        q, k, v = self.rows(x[:, 0]).chunk(3, 2)
        scores = (q @ k.transpose(1, 2)).float() / 4 + self.mask
        return hidden + (scores.softmax(-1).to(v.dtype) @ v).mean(1)


NETWORKS = [LayerNorms, BatchNorms, GroupNorms, OtherNorms, Embeddings, Sinusoids, Attention, Masked]

MORE: dict[type[Base], tuple[str, ...]] = {  # tensors in bfloat16 beside those of Base
    GroupNorms: ("convolution.weight", "convolution.bias"),
    OtherNorms: ("last.bias",),
    Embeddings: ("row.weight", "row.bias"),
    Attention: (
        *("rows.weight", "rows.bias", "heads.in_proj_weight", "heads.in_proj_bias"),
        *("heads.out_proj.weight", "heads.out_proj.bias"),
    ),
    Masked: ("rows.weight", "rows.bias"),
}


def save_own(kind: type[nn.Module], folder: Path) -> OwnNet:
    torch.manual_seed(0)
    network = OwnNet(f"{kind.__module__}:{kind.__name__}", {}, SHAPE, 10)
    save_denoiser(Denoiser(network, EDM(), "edm"), folder)
    return network


@pytest.mark.parametrize("kind", NETWORKS)
def test_it_trains_in_bfloat16(kind: type[Base], tmp_path: Path) -> None:
    start = save_own(kind, tmp_path / "own")
    session = build_session(recipe(tmp_path / "own", precision="bfloat16"))
    for _ in range(2):
        session.update_players(session)
    for name, player in session.state.players.items():
        assert player.counters()["skipped"] == 0
        found = dict(player.bare.named_parameters())
        for key, before in start.named_parameters():
            after = next(value for full, value in found.items() if full.endswith(f"network.{key}"))
            assert after.dtype == torch.float32 and bool(after.isfinite().all())
            assert before.requires_grad == (not torch.equal(after, before)), (name, key)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_teacher_is_as_precise_as_the_generator(kind: type[Base], tmp_path: Path) -> None:
    """Its norms and tables are exact, and its estimates are those of float32 weights to the last bit."""
    start = save_own(kind, tmp_path / "own")
    session = build_session(recipe(tmp_path / "own", precision="bfloat16"))
    assert session.teacher is not None
    stored = session.teacher.network.state_dict()
    low = {key for key, value in stored.items() if value.dtype == torch.bfloat16}
    for key, value in start.state_dict().items():
        assert torch.equal(stored[key], value.bfloat16() if key in low else value), key
    linear = {f"module.{one}.{part}" for one in ("enter", "time", "leave") for part in ("weight", "bias")}
    assert low == (set() if kind is Sinusoids else linear | {f"module.{key}" for key in MORE.get(kind, ())})
    x_t, t = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1)), torch.logspace(-2, 2, 4)
    exact = Denoiser(start, EDM(), "edm", autocast_dtype=torch.bfloat16).eval()
    labels = torch.arange(4)
    assert torch.equal(session.teacher(x_t, t, labels), exact(x_t, t, labels))


def test_a_mask_of_minus_infinity_is_no_damage(tmp_path: Path) -> None:
    """It goes through the checks of training, of a resume and of a load."""
    save_own(Masked, tmp_path / "own")
    trainers.train(recipe(tmp_path / "own", images=16), folder=tmp_path / "run", trust_code=True)
    trained = trainers.resume(tmp_path / "run", images=32, trust_code=True)
    assert trained.images == 32 and trainers.load(tmp_path / "run", trust_code=True).images == 32


def test_a_table_keeps_times_apart(tmp_path: Path) -> None:
    """In bfloat16 a frequency of the table would be off by up to 1/256, which is a radian at a time of 256."""
    save_own(Embeddings, tmp_path / "own")
    session = build_session(recipe(tmp_path / "own", precision="bfloat16"))
    for denoiser in (session.teacher, session.state.players["fake"].bare):
        table = next(value for name, value in denoiser.named_parameters() if name.endswith("frequencies"))
        assert torch.equal(table, torch.logspace(0, -3, 8)) and not torch.equal(table, table.bfloat16().float())
