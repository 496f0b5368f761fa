"""A reward is a term of its own beside those of any objective."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from distill import EDM, Denoiser, Random, UserError
from distill.conditions import Condition
from distill.generator import Generator
from distill.objectives import Batch, Denoisers, Objective
from distill.objectives.diff_instruct import DiffInstruct
from distill.objectives.guided import Guided
from distill.objectives.rewarded import Rewarded
from distill.objectives.sid import SiD
from distill.teachers import load_denoiser
from tests.toys import Nearness, Tanh


def case() -> tuple[Denoisers, Tensor, Batch]:
    teacher, fake = (Denoiser(Tanh(18, seed), EDM(), "v").requires_grad_(False) for seed in (1, 2))
    random = Random.at(0, torch.arange(6))
    x = random.stream("x").normal(2, 3, 3).requires_grad_()
    cond = Condition(labels=torch.arange(6) % 3)
    return Denoisers(EDM(), teacher, fake), x, Batch(torch.zeros_like(x), random, cond)


@pytest.mark.parametrize("inner", [DiffInstruct(), SiD(), Guided(objective=SiD())], ids=["di", "sid", "guided"])
def test_the_terms(inner: Objective) -> None:
    """The inner ones untouched; the reward's gradient in x is scale times its own, and none beyond [-1, 1]."""
    nets, x, batch = case()
    noted: dict[str, Tensor] = {}
    objective = Rewarded(objective=inner, reward=Nearness(), reward_scale=3.0)
    nets = replace(
        nets,
        frozen=objective.load_frozen(),
        note=lambda name, values, nsr=None: noted.update({name: values}),
    )
    terms = objective.generator_loss(nets, x, batch)
    reward = -((x.detach().clamp(-1, 1) - 0.5) ** 2).sum((1, 2, 3)) / 2
    assert torch.allclose(terms.pop("nearness"), -3 * reward)
    assert torch.allclose(noted["nearness"], reward) and "gap" in noted
    plain = inner.generator_loss(nets, x, batch)
    assert terms.keys() == plain.keys() and all(torch.equal(terms[name], plain[name]) for name in plain)
    (gradient,) = torch.autograd.grad(objective.generator_loss(nets, x, batch)["nearness"].sum(), x)
    outside = x.detach().abs() > 1
    assert bool(outside.any()) and torch.allclose(gradient, torch.where(outside, 0, 3 * (x.detach() - 0.5)))


def test_everything_else_is_the_inner_objectives() -> None:
    nets, x, batch = case()
    inner = Guided(objective=SiD(fake_weight="eps"), condition_dropout=0.5)
    objective = Rewarded(objective=inner, reward=Nearness(), reward_scale=1.0)
    assert (objective.differentiates_denoisers, objective.fake_weight) == (True, "eps")
    ours, theirs = (one.fake_loss(nets, x, batch) for one in (objective, inner))
    assert torch.equal(ours["denoising"], theirs["denoising"])


def test_latents_cannot_be_judged() -> None:
    objective = Rewarded(objective=DiffInstruct(), reward=Nearness(), reward_scale=1.0)
    objective.check(Denoiser(Tanh(18, 1), EDM(), "v"))
    line = "reward: nearness judges pixels, the teacher's samples are latents and have no decoder"
    with pytest.raises(UserError, match=f"^{line}$"):
        objective.check(Denoiser(Tanh(18, 1), EDM(), "v", latents=True))


def latent_case(folder: Path) -> tuple[Denoisers, Generator, Denoiser, Batch]:
    """A teacher of latents with its autoencoder, a fake, and a generator, all in float64."""
    teacher = load_denoiser(folder).double().requires_grad_(False)
    fake, made = copy.deepcopy(teacher), copy.deepcopy(teacher).requires_grad_(True)
    random = Random.at(0, torch.arange(3))
    noise = random.stream("z").normal(*teacher.network.shape, dtype=torch.float64)
    nets = Denoisers(teacher.path, teacher, fake)
    return nets, Generator(made, 500.0), teacher, Batch(noise, random, Condition(labels=torch.arange(3)))


@pytest.mark.parametrize("guided", [False, True])
def test_latents_are_decoded_and_judged(guided: bool, pipelines: Callable[[str], Path]) -> None:
    """The reward's gradient in the generator's weights is that of decoding and judging by hand, to 1e-10."""
    folder = pipelines("dit")
    nets, generator, teacher, batch = latent_case(folder)
    inner: Objective = Guided(objective=DiffInstruct()) if guided else DiffInstruct()
    objective = Rewarded(objective=inner, reward=Nearness(), reward_scale=3.0)
    objective.check(teacher)
    nets = replace(nets, frozen=objective.load_frozen())
    weights = list(generator.parameters())
    terms = objective.generator_loss(nets, generator(batch.noise, batch.cond), batch)
    gradients = torch.autograd.grad(terms["nearness"].sum(), weights, allow_unused=True)

    vae = AutoencoderKL.from_pretrained(folder / "vae").double().eval()
    images = vae.decode(generator(batch.noise, batch.cond) / vae.config.scaling_factor).sample.clamp(-1, 1)
    by_hand = 3 * ((images - 0.5) ** 2).sum((1, 2, 3)) / 2
    assert float((terms["nearness"] - by_hand).detach().abs().max()) < 1e-10
    assert 0 < float((images.detach().abs() == 1).double().mean()) < 0.9
    seen = 0
    for ours, wanted in zip(gradients, torch.autograd.grad(by_hand.sum(), weights, allow_unused=True), strict=True):
        assert (ours is None) == (wanted is None)
        if ours is not None:
            seen += bool(wanted.any())
            assert float((ours - wanted).abs().max()) < 1e-10 * max(1.0, float(wanted.abs().max()))
    assert seen > 10
    plain = inner.generator_loss(nets, generator(batch.noise, batch.cond), batch)
    assert all(torch.equal(terms[name], plain[name]) for name in plain)


def test_one_reward_twice() -> None:
    inner = Guided(objective=Rewarded(objective=DiffInstruct(), reward=Nearness(), reward_scale=1.0))
    with pytest.raises(UserError, match=r"^reward: nearness is there twice; give it one reward_scale$"):
        Rewarded(objective=inner, reward=Nearness(), reward_scale=1.0)
