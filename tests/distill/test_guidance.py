"""A guided denoiser is weak + scale (strong - weak), asks no network in vain, and behaves as a denoiser does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distill import EDM, Denoiser, Random, UserError
from distill.conditions import Condition, ConditionLike
from distill.discriminator import ChannelMean, Critic
from distill.guidance import GuidedDenoiser, check_null, classifier_free, drop_conditions
from tests.toys import Tanh

RANDOM = Random.at(0, torch.arange(4))
X, T = RANDOM.normal(2, 3, 3, dtype=torch.float64), torch.linspace(0.2, 3.0, 4).double()
COND, NULL = torch.tensor([0, 2, 1, 0]), torch.full((4,), 3)


class Counted:
    """A denoiser whose calls are kept, by condition."""

    def __init__(self, network: Any) -> None:
        self.network, self.calls = network, list[tuple[bool, tuple[str, ...]]]()

    def __call__(self, x_t: Tensor, t: Tensor, cond: ConditionLike, *want: str) -> Any:
        self.calls.append((bool((Condition.of(cond)["labels"] == NULL).all()), want))
        return self.network(x_t, t, cond, *want)


def denoiser() -> Denoiser:
    return Denoiser(Tanh(18, 1).double(), EDM(), "v").requires_grad_(False)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0, 3.0])
def test_the_formula_and_its_calls(scale: float) -> None:
    plain = denoiser()
    counted = Counted(plain)
    ours = classifier_free(counted, scale, plain.null)(X, T, COND)
    conditional, unconditional = plain(X, T, COND), plain(X, T, NULL)
    assert torch.allclose(ours, unconditional + scale * (conditional - unconditional), rtol=1e-12)
    assert [null for null, _ in counted.calls] == {0.0: [True], 1.0: [False]}.get(scale, [False, True])
    if scale in (0, 1):
        assert torch.equal(ours, conditional if scale else unconditional)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.0, 3.0])
def test_a_critic(scale: float) -> None:
    """The logits are those under the condition (at scale 0 the null condition), from one pass where they are alone."""
    plain = denoiser()
    critic = Critic(plain, "encoder", ChannelMean())
    counted = Counted(critic)
    guided = classifier_free(counted, scale, plain.null)
    x0, logits = guided(X, T, COND, "both")
    assert torch.equal(x0, classifier_free(plain, scale, plain.null)(X, T, COND))
    assert torch.equal(logits, critic(X, T, COND if scale else NULL, "logits"))
    counted.calls.clear()
    assert torch.equal(guided(X, T, COND, "logits"), logits)
    assert counted.calls == [(scale == 0, ("logits",))]


def test_the_gradient_passes_both() -> None:
    plain, other = denoiser(), Denoiser(Tanh(18, 2).double(), EDM(), "v")
    x = X.clone().requires_grad_()
    strong, weak = (torch.autograd.grad(net(x, T, COND).sum(), x)[0] for net in (plain, other))
    (ours,) = torch.autograd.grad(GuidedDenoiser(plain, other, 2.5)(x, T, COND).sum(), x)
    assert torch.allclose(ours, weak + 2.5 * (strong - weak), rtol=1e-12)
    scaled = GuidedDenoiser(plain, other, 2.5)(X, T, COND).sum()
    (bias,) = torch.autograd.grad(scaled, other.network.bias)
    (alone,) = torch.autograd.grad(other(X, T, COND).sum(), other.network.bias)
    assert torch.allclose(bias, -1.5 * alone, rtol=1e-12)


def test_attributes_are_the_strong_ones() -> None:
    plain = denoiser()
    plain.sigma_data = 0.7
    guided = classifier_free(plain, 2.0, plain.null)
    assert (guided.sigma_data, guided.path) == (0.7, plain.path)
    assert torch.equal(guided.null(COND)["labels"], NULL)


def test_dropped_conditions() -> None:
    random = Random.at(5, torch.arange(4000))
    cond, null = Condition(labels=torch.arange(4000) % 3), Condition(labels=torch.full((4000,), 3))
    once = drop_conditions(cond, null, 0.1, random)["labels"]
    gone = once == 3
    assert 330 < int(gone.sum()) < 470  # 400 expected, standard deviation 19
    assert torch.equal(once[~gone], cond["labels"][~gone])
    some = slice(7, 20)
    part = drop_conditions(cond.rows(some), null.rows(some), 0.1, Random(random.keys[some]))
    assert torch.equal(once[some], part["labels"])
    given = Condition(text=torch.ones(4000, 5, 2), size=cond["labels"])
    both = drop_conditions(given, Condition(text=torch.zeros(4000, 5, 2), size=null["labels"]), 0.1, random)
    assert torch.equal(both["size"], once)
    assert torch.equal(both["text"], torch.ones(4000, 5, 2) * ~gone[:, None, None])
    for probability, wanted in ((0.0, cond), (1.0, null)):
        assert torch.equal(drop_conditions(cond, null, probability, random)["labels"], wanted["labels"])
    assert drop_conditions(Condition(), Condition(), 0.5, random) == {}


def test_a_teacher_without_a_null_condition() -> None:
    check_null(denoiser(), "guidance")
    with pytest.raises(
        UserError, match=r"^objective: guidance needs a teacher with a null condition, this one states "
    ):
        check_null(Denoiser(torch.nn.Identity(), EDM(), "x0"), "guidance")


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.0, 3.0])
def test_one_pass_over_a_doubled_batch(scale: float) -> None:
    """Estimate and gradient are those of two passes. At scale 0 and 1 one estimate is enough."""
    plain, x, sizes = denoiser(), X.clone().requires_grad_(), list[int]()

    def counted(x_t: Tensor, t: Tensor, cond: ConditionLike) -> Tensor:
        sizes.append(len(x_t))
        return plain(x_t, t, cond)

    ours = classifier_free(counted, scale, plain.null, in_one_pass=True)(x, T, COND)
    two = classifier_free(plain, scale, plain.null)(x, T, COND)
    assert torch.allclose(ours, two, rtol=1e-12) and sizes == [4 if scale in (0, 1) else 8]
    (gradient,), (wanted,) = (torch.autograd.grad((found**2).sum(), x) for found in (ours, two))
    assert torch.allclose(gradient, wanted, rtol=1e-12)
