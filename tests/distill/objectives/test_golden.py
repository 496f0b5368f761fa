"""Losses and gradients equal those of the methods' own implementations (tests/golden/README.md).

Through the pure functions and through the objectives, whose law of times is asked at the quantile of the stored noise
level: so law, weight, normaliser, scale and detaching are compared as well.
"""

from __future__ import annotations

from pathlib import Path as FilePath

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from distill import EDM, Denoiser
from distill.objectives import (
    Batch,
    Denoisers,
    DiffInstruct,
    SiD,
    diff_instruct_loss,
    dmd_loss,
    l1_normaliser,
    sid_loss,
)
from distill.weights import denoising_weight
from tests.toys import given

GOLDEN = FilePath(__file__).parents[2] / "golden"
Golden = dict[str, Tensor]


class Toy(nn.Module):
    """D(x, s) = x/(1+s^2) + s/(1+s) tanh(x W + b); `time` is EDM's 250 ln s."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor, time: Tensor, cond: None) -> Tensor:
        s = (time / 250).exp()[:, None]
        flat = x.flatten(1)
        return (flat / (1 + s**2) + s / (1 + s) * torch.tanh(flat @ self.weight + self.bias)).reshape(x.shape)


def load(name: str) -> tuple[Golden, Denoisers, Toy, Tensor]:
    """The numbers, both denoisers, the fake's network, and x0 as a leaf."""
    golden = load_file(GOLDEN / f"{name}.safetensors")
    teacher, fake = (Toy(golden[f"{who}_weight"], golden[f"{who}_bias"]) for who in ("teacher", "fake"))
    nets = Denoisers(EDM(), Denoiser(teacher, EDM(), "x0"), Denoiser(fake, EDM(), "x0"))
    return golden, nets, fake, golden["x0"].clone().requires_grad_()


def batch(golden: Golden, u: Tensor) -> Batch:
    return Batch(torch.full_like(golden["x0"], torch.nan), given(golden["noise"], u))


def log_normal_quantile(sigma: Tensor) -> Tensor:
    return torch.special.ndtr((sigma.double().log() + 1.2) / 1.2)


def scores(golden: Golden, nets: Denoisers, x: Tensor) -> tuple[Tensor, Tensor]:
    x_t = x + golden["sigma"][:, None, None, None] * golden["noise"]
    return nets.teacher(x_t, golden["sigma"]), nets.fake(x_t, golden["sigma"], None)


def assert_same(ours: Tensor, golden: Tensor, scale: float = 1.0) -> None:
    """Equal to 1e-5 of the largest entry; losses are stored per element, [B, ...]."""
    stored = scale * (golden.flatten(1).sum(1) if ours.ndim == 1 and golden.ndim > 1 else golden)
    assert ours.dtype == torch.float32
    assert float((ours.detach() - stored).abs().max() / stored.abs().max()) < 1e-5


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_sid(alpha: float) -> None:
    golden, nets, _, x = load(f"sid_generator_alpha{alpha}")
    teacher, fake = scores(golden, nets, x)
    loss = l1_normaliser(x, teacher) * sid_loss(x, teacher, fake, alpha)
    assert_same(loss, golden["loss_per_pixel"])
    assert_same(torch.autograd.grad(loss.sum(), x)[0], golden["grad_x0_of_sum"])

    objective = SiD() if alpha == 1.2 else SiD(alpha=alpha)  # 1.2 is the authors' default
    term = objective.generator_loss(nets, x, batch(golden, golden["u"] / 0.8))["sid"]
    assert_same(term, golden["loss_per_pixel"], 100)  # stored before the authors' loss scale
    assert_same(torch.autograd.grad(term.sum(), x)[0], golden["grad_x0_of_sum"], 100)


def test_diff_instruct() -> None:
    golden, nets, _, x = load("diff_instruct_generator")
    loss = diff_instruct_loss(x, *scores(golden, nets, x))
    assert_same(loss, golden["loss_per_pixel"])
    assert_same(torch.autograd.grad(loss.sum(), x)[0], golden["grad_x0_of_sum"])

    u = log_normal_quantile(golden["sigma"])
    term = DiffInstruct().generator_loss(nets, x, batch(golden, u))["diff_instruct"]
    assert_same(term, golden["loss_per_pixel"])
    assert_same(torch.autograd.grad(term.sum(), x)[0], golden["grad_x0_of_sum"])


@pytest.mark.parametrize(("source", "floor"), [("dmd2", 0.0), ("fastgen", 1e-6)])
def test_dmd(source: str, floor: float) -> None:
    """Both average over all elements of the batch; FastGen's normaliser is 1/(mean + 1e-6)."""
    golden, nets, _, x = load(f"dmd_generator_{source}")
    teacher, fake = scores(golden, nets, x)
    loss = dmd_loss(x, teacher, fake)
    floored = 1 / (1 + floor * l1_normaliser(x, teacher))
    assert_same((floored**2 * loss).sum()[None] / x.numel(), golden["loss"])
    assert_same(torch.autograd.grad((floored * loss).sum(), x)[0] / x.numel(), golden["grad_x0"])


def test_fake() -> None:
    golden, nets, network, x = load("sid_fake")
    weight = denoising_weight("edm", golden["sigma"])[:, None, None, None]
    assert_same((weight * (scores(golden, nets, x)[1] - x) ** 2).flatten(1).sum(1), golden["loss_per_pixel"])

    term = SiD().fake_loss(nets, x, batch(golden, log_normal_quantile(golden["sigma"])))["denoising"]
    assert_same(term, golden["loss_per_pixel"])
    for ours, name in zip(torch.autograd.grad(term.sum(), network.parameters()), ("weight", "bias"), strict=True):
        assert_same(ours, golden[f"grad_fake_{name}"])
