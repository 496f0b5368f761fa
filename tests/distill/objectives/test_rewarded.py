"""A reward is a term of its own beside those of any objective."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill import EDM, Denoiser, Random, UserError
from distill.objectives import Batch, Denoisers, DiffInstruct, Guided, Objective, Rewarded, SiD
from tests.toys import Nearness, Tanh


def case() -> tuple[Denoisers, Tensor, Batch]:
    teacher, fake = (Denoiser(Tanh(18, seed), EDM(), "v").requires_grad_(False) for seed in (1, 2))
    random = Random.at(0, torch.arange(6))
    x = random.stream("x").normal(2, 3, 3).requires_grad_()
    return Denoisers(EDM(), teacher, fake), x, Batch(torch.zeros_like(x), random, torch.arange(6) % 3)


@pytest.mark.parametrize("inner", [DiffInstruct(), SiD(), Guided(objective=SiD())], ids=["di", "sid", "guided"])
def test_the_terms(inner: Objective) -> None:
    """The inner ones untouched; the reward's gradient in x is scale times its own, and none beyond [-1, 1]."""
    nets, x, batch = case()
    noted: dict[str, Tensor] = {}
    batch = Batch(**{**vars(batch), "note": lambda name, values, nsr=None: noted.update({name: values})})
    objective = Rewarded(objective=inner, reward=Nearness(), reward_scale=3.0)
    nets = Denoisers(nets.path, nets.teacher, nets.fake, objective.load_frozen())
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
    assert (objective.through_scores, objective.fake_weight) == (True, "eps")
    ours, theirs = (one.fake_loss(nets, x, batch) for one in (objective, inner))
    assert torch.equal(ours["denoising"], theirs["denoising"])


def test_latents_cannot_be_judged() -> None:
    objective = Rewarded(objective=DiffInstruct(), reward=Nearness(), reward_scale=1.0)
    objective.check(Denoiser(Tanh(18, 1), EDM(), "v"))
    line = "reward: nearness judges pixels, the teacher's samples are latents and have no decoder"
    with pytest.raises(UserError, match=f"^{line}$"):
        objective.check(Denoiser(Tanh(18, 1), EDM(), "v", latents=True))


def test_one_reward_twice() -> None:
    inner = Guided(objective=Rewarded(objective=DiffInstruct(), reward=Nearness(), reward_scale=1.0))
    with pytest.raises(UserError, match=r"^reward: nearness is there twice; give it one reward_scale$"):
        Rewarded(objective=inner, reward=Nearness(), reward_scale=1.0)
