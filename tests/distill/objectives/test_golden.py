"""Losses and gradients equal those of the methods' own implementations (tests/golden/README.md).

Through the pure functions and through the objectives, whose law of times is asked at the quantile of the stored noise
level: so law, weight, normaliser, scale and detaching are compared as well.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path as FilePath
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from distill import EDM, Denoiser, Flow
from distill.conditions import Condition
from distill.discriminator import ChannelMean, adversarial_loss, discriminator_loss
from distill.loss_weights import denoising_weight
from distill.networks.network import Network
from distill.objectives import Batch, Denoisers, Objective, l1_normaliser
from distill.objectives.diff_instruct import DiffInstruct, diff_instruct_loss
from distill.objectives.dmd import DMD, dmd_loss
from distill.objectives.dmd2 import DMD2
from distill.objectives.fgm import FGM
from distill.objectives.realuid import RealUID, realuid_fake_loss, realuid_loss
from distill.objectives.sid import SiD, sid_loss
from distill.objectives.sida import SiDA
from distill.times import UniformFlow
from tests.toys import given

GOLDEN = FilePath(__file__).parents[2] / "golden"
Golden = dict[str, Tensor]


class Encoder(nn.Module):
    """The features tanh(x W_E)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1) @ self.weight).reshape(x.shape)


class Toy(Network):
    """D(x, s) = x/(1+s^2) + s/(1+s) tanh(x W + b); `time` is EDM's 250 ln s. Its encoder is asked, and not used."""

    taps: ClassVar[dict[str, str]] = {"encoder": "encoder", "middle": "encoder"}
    shape, classes = (2, 3, 3), 0

    def __init__(self, weight: Tensor, bias: Tensor, encoder: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.encoder = Encoder(encoder)

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        self.encoder(x)
        s = (time / 250).exp()[:, None]
        flat = x.flatten(1)
        return (flat / (1 + s**2) + s / (1 + s) * torch.tanh(flat @ self.weight + self.bias)).reshape(x.shape)


def load(name: str) -> tuple[Golden, Denoisers, Toy, Tensor]:
    """Return the numbers, both denoisers, the fake's network, and x0 as a leaf."""
    golden = load_file(GOLDEN / f"{name}.safetensors")
    encoder = golden["encoder_weight"]
    teacher, fake = (Toy(golden[f"{who}_weight"], golden[f"{who}_bias"], encoder) for who in ("teacher", "fake"))
    nets = Denoisers(EDM(), Denoiser(teacher, EDM(), "x0"), Denoiser(fake, EDM(), "x0"))
    return golden, nets, fake, golden["x0"].clone().requires_grad_()


def batch(golden: Golden, u: Tensor) -> Batch:
    return Batch(torch.full_like(golden["x0"], torch.nan), given(golden["noise"], u))


def log_normal_quantile(sigma: Tensor) -> Tensor:
    return torch.special.ndtr((sigma.double().log() + 1.2) / 1.2)


def ramp_position(sigma: Tensor) -> Tensor:
    """Return the position in [0, 1] of noise levels on EDM's ramp from 0.002 to 80."""
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    return (sigma.double() ** (1 / 7) - low) / (high - low)


def estimates(golden: Golden, nets: Denoisers, x: Tensor) -> tuple[Tensor, Tensor]:
    x_t = x + golden["sigma"][:, None, None, None] * golden["noise"]
    return nets.teacher(x_t, golden["sigma"]), nets.fake(x_t, golden["sigma"], None)


def assert_same(ours: Tensor, golden: Tensor, scale: float = 1.0) -> None:
    """Assert equality to 1e-5 of the largest entry; losses are stored per element, [B, ...]."""
    stored = scale * (golden.flatten(1).sum(1) if ours.ndim == 1 and golden.ndim > 1 else golden)
    assert ours.dtype == torch.float32
    assert float((ours.detach() - stored).abs().max() / stored.abs().max()) < 1e-5


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_sid(alpha: float) -> None:
    golden, nets, _, x = load(f"sid_generator_alpha{alpha}")
    teacher, fake = estimates(golden, nets, x)
    loss = l1_normaliser(x, teacher) * sid_loss(x, teacher, fake, alpha)
    assert_same(loss, golden["loss_per_pixel"])
    assert_same(torch.autograd.grad(loss.sum(), x)[0], golden["grad_x0_of_sum"])

    objective = SiD() if alpha == 1.2 else SiD(alpha=alpha)  # 1.2 is the authors' default
    term = objective.generator_loss(nets, x, batch(golden, golden["u"] / 0.8))["sid"]
    assert_same(term, golden["loss_per_pixel"], 100)  # stored before the authors' loss scale
    assert_same(torch.autograd.grad(term.sum(), x)[0], golden["grad_x0_of_sum"], 100)


def test_diff_instruct() -> None:
    golden, nets, _, x = load("diff_instruct_generator")
    loss = diff_instruct_loss(x, *estimates(golden, nets, x))
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
    teacher, fake = estimates(golden, nets, x)
    loss = dmd_loss(x, teacher, fake)
    floored = 1 / (1 + floor * l1_normaliser(x, teacher))
    assert_same((floored**2 * loss).sum()[None] / x.numel(), golden["loss"])
    assert_same(torch.autograd.grad((floored * loss).sum(), x)[0] / x.numel(), golden["grad_x0"])


def test_dmd2() -> None:
    """DMD's term and the fake's loss at the authors' own times; they average over elements."""
    golden, nets, _, x = load("dmd_generator_dmd2")
    objective = DMD2()
    index = golden["timestep"].double()
    assert_same(objective.times.nsr((index - 20) / 960, EDM()).float(), golden["sigma"])
    critic = with_critic(objective, nets)
    term = objective.generator_loss(critic, x, batch(golden, (index - 20) / 960))["dmd"]
    assert_same(term.sum()[None] / x.numel(), golden["loss"])
    assert_same(torch.autograd.grad(term.sum(), x)[0] / x.numel(), golden["grad_x0"])

    golden, nets, network, x = load("dmd2_fake")
    at = replace(batch(golden, golden["timestep"].double() / 999), real=golden["real"])
    loss = objective.fake_loss(with_critic(objective, nets), x, at)["denoising"]
    assert_same(loss.sum()[None] / x.numel(), golden["loss"])
    assert_same(torch.autograd.grad(loss.sum(), network.weight)[0] / x.numel(), golden["grad_fake_weight"])


def test_dmd_draws_its_times() -> None:
    """DMD's times go from 20 to 980 of the 1000 points of EDM's ramp."""
    golden, nets, _, x = load("dmd_generator_dmd2")
    u = (golden["timestep"].double() - 20) / 960
    term = DMD(regression=0.0).generator_loss(nets, x, batch(golden, u))["dmd"]
    assert_same(term.sum()[None] / x.numel(), golden["loss"])
    assert_same(torch.autograd.grad(term.sum(), x)[0] / x.numel(), golden["grad_x0"])


def test_fake() -> None:
    golden, nets, network, x = load("sid_fake")
    weight = denoising_weight("edm", golden["sigma"])[:, None, None, None]
    assert_same((weight * (estimates(golden, nets, x)[1] - x) ** 2).flatten(1).sum(1), golden["loss_per_pixel"])

    term = SiD().fake_loss(nets, x, batch(golden, log_normal_quantile(golden["sigma"])))["denoising"]
    assert_same(term, golden["loss_per_pixel"])
    parameters = (network.weight, network.bias)
    for ours, name in zip(torch.autograd.grad(term.sum(), parameters), ("weight", "bias"), strict=True):
        assert_same(ours, golden[f"grad_fake_{name}"])


def with_critic(objective: Objective, nets: Denoisers) -> Denoisers:
    assert isinstance(nets.fake, Denoiser)
    return replace(nets, fake=objective.build_fake(nets.fake))


def test_sida_generator() -> None:
    """The stored adversarial loss is the batch's one cross-entropy, weighted by each sample; its gradient has P."""
    golden, nets, network, x = load("sida_generator")
    pixels = x[0].numel()
    teacher, fake = estimates(golden, nets, x)
    logits = ChannelMean()(network.encoder(x + golden["sigma"][:, None, None, None] * golden["noise"]))
    weight, entropy = l1_normaliser(x, teacher), adversarial_loss(logits)
    assert_same(weight * entropy.mean(), golden["adversarial_loss"])
    assert_same(weight * sid_loss(x, teacher, fake, 1.0), golden["sid_loss_per_pixel"])

    objective = SiDA()
    u = ramp_position(golden["sigma"]) / 0.8
    critic = with_critic(objective, nets)
    terms = objective.generator_loss(replace(critic, images=200_000), x, batch(golden, u))
    assert_same(terms["sid"], golden["sid_loss_per_pixel"], 50)
    assert_same(terms["adversarial"].sum()[None], golden["adversarial_loss"].sum()[None], 0.005 * pixels)
    for name, stored, scale in (("sid", "sid_sum", 50), ("adversarial", "adversarial_sum_over_pixels", 0.005)):
        (gradient,) = torch.autograd.grad(terms[name].sum(), x, retain_graph=True)
        assert_same(gradient, golden[f"grad_x0_of_{stored}"], scale)
    alone = objective.generator_loss(critic, x, batch(golden, u))
    assert list(alone) == ["sid"]
    assert_same(alone["sid"], golden["sid_loss_per_pixel"], 100)


def test_sida_fake() -> None:
    golden, nets, network, x = load("sida_fake")
    objective = SiDA()
    labelled = replace(batch(golden, log_normal_quantile(golden["sigma"])), real=golden["real"])
    terms = objective.fake_loss(with_critic(objective, nets), x, labelled)
    assert_same(terms["denoising"], golden["denoising_loss_per_pixel"])
    assert_same(terms["discriminator"].sum()[None], golden["discriminator_loss"].sum()[None])
    assert_same(torch.autograd.grad(terms["denoising"].sum(), network.weight)[0], golden["grad_fake_weight"])
    by_sample = replace(objective, reduction="sample").fake_loss(with_critic(objective, nets), x, labelled)
    noisy = (value + golden["sigma"][:, None, None, None] * golden["noise"] for value in (x, golden["real"]))
    entropies = torch.stack(discriminator_loss(*(ChannelMean()(network.encoder(x_t)) for x_t in noisy)))
    weight = denoising_weight("edm", golden["sigma"])
    assert_same(weight * entropies.mean(), golden["discriminator_loss"])
    assert_same(by_sample["discriminator"], (weight * entropies.mean(0)).detach())


class ToyVelocity(nn.Module):
    """noise - x0 as -(1 + s) tanh(x W) at s = 1 - t, since t = 1 is noise here; `time` is 1000 t."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor, time: Tensor, cond: None) -> Tensor:
        return -(2 - time / 1000)[:, None, None, None] * torch.tanh(x.flatten(1) @ self.weight).reshape(x.shape)


@pytest.mark.parametrize(("name", "a", "b"), [("uid", 1.0, 1.0), ("real", 0.98, 1.02)])
def test_realuid(name: str, a: float, b: float) -> None:
    golden = load_file(GOLDEN / "realuid.safetensors")
    teacher, network = (ToyVelocity(golden[f"{who}_weight"]) for who in ("teacher", "fake"))
    x, noise, real = golden["x0"].requires_grad_(), golden["noise"], golden["real"]
    loss, gradient = golden[f"{name}_generator_loss"], golden[f"{name}_grad_x0"]
    objective, gradient_fake = -golden[f"{name}_fake_objective_to_maximise"], -golden[f"{name}_grad_fake_weight"]

    t = 1 - golden["t"]
    s = t[:, None, None, None]
    x_t, real_t = (1 - s) * x + s * noise, (1 - s) * real + s * noise
    ours = realuid_loss(noise - x, teacher(x_t, 1000 * t, None), network(x_t, 1000 * t, None), a, b).mean()
    assert_same(ours[None], loss)
    assert_same(torch.autograd.grad(ours, x)[0], gradient)
    on_real = realuid_fake_loss(noise - real, network(real_t, 1000 * t, None), 1 - a, 1 - b)
    on_ours = realuid_fake_loss(noise - x, network(x_t, 1000 * t, None), a, b).detach()
    assert_same((on_ours + on_real).mean()[None], objective)

    law = UniformFlow(0.001, 0.999)
    nets = Denoisers(Flow(), Denoiser(teacher, Flow(), "velocity"), Denoiser(network, Flow(), "velocity"))
    ours_in = Batch(torch.full_like(x, torch.nan), given(noise, (t.double() - law.low) / 0.998), real=real)
    for method in (RealUID(a=a, b=b), *([FGM(first=1.0, times=law, fake_times=law)] if a == b else [])):
        term = torch.stack(list(method.generator_loss(nets, x, ours_in).values())).sum(0).mean()
        assert_same(term[None], loss)
        assert_same(torch.autograd.grad(term, x)[0], gradient)
        term = torch.stack(list(method.fake_loss(nets, x, ours_in).values())).sum(0).mean()
        assert_same(term[None], objective)
        assert_same(torch.autograd.grad(term, network.weight)[0], gradient_fake)
