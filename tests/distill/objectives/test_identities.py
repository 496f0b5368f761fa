"""Identities between the methods, on arbitrary numbers: no law of times and no network is involved."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill import Flow, Random
from distill.objectives import (
    diff_instruct_loss,
    dmd_loss,
    fgm_loss,
    l1_normaliser,
    per_sample,
    sid_loss,
    velocity_weight,
)
from tests.toys import gradients

ALPHAS = (0.0, 0.5, 1.0, 1.2)


@pytest.fixture
def three() -> tuple[Tensor, Tensor, Tensor]:
    """x, teacher and fake, [5, 2, 3, 3]."""
    random = Random.at(0, torch.arange(5))
    x, teacher, fake = (random.stream(name).normal(2, 3, 3, dtype=torch.float64) for name in "abc")
    return x, teacher, fake


def test_terms_are_sums_over_elements(three: tuple[Tensor, Tensor, Tensor]) -> None:
    x, teacher, fake = three
    gap = teacher - fake
    assert torch.allclose(sid_loss(*three, 1.2), (gap * (teacher - x - 1.2 * gap)).sum((1, 2, 3)), rtol=1e-12)
    assert torch.allclose(diff_instruct_loss(*three), -(gap * x).sum((1, 2, 3)), rtol=1e-12)
    assert torch.equal(per_sample(torch.ones(2, 3, 4)), torch.tensor([12.0, 12.0]))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_diff_instruct_is_sid_with_constant_networks(three: tuple[Tensor, Tensor, Tensor], alpha: float) -> None:
    x, teacher, fake = three
    (sid,) = gradients(lambda x: sid_loss(x, teacher, fake, alpha).sum(), x)
    (direct,) = gradients(lambda x: diff_instruct_loss(x, teacher, fake).sum(), x)
    assert torch.allclose(sid, direct, rtol=1e-12)
    assert torch.equal(direct, fake - teacher)


def test_diff_instruct_holds_its_networks_constant(three: tuple[Tensor, Tensor, Tensor]) -> None:
    x, teacher, fake = (value.clone().requires_grad_() for value in three)
    diff_instruct_loss(x, teacher, fake).sum().backward()
    assert x.grad is not None
    assert teacher.grad is None
    assert fake.grad is None


def test_dmd_is_diff_instruct_under_the_normaliser(three: tuple[Tensor, Tensor, Tensor]) -> None:
    """The gradient reaches x alone; the weight is one number a sample; the value is half the squared step."""
    x, teacher, fake = (value.clone().requires_grad_() for value in three)
    loss = dmd_loss(x, teacher, fake)
    loss.sum().backward()
    step = l1_normaliser(x, teacher)[:, None, None, None] * (teacher - fake).detach()
    assert x.grad is not None and torch.allclose(x.grad, -step, rtol=1e-12)
    assert teacher.grad is None and fake.grad is None
    assert torch.allclose(loss, per_sample(step**2) / 2, rtol=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_sid_in_its_second_form(three: tuple[Tensor, Tensor, Tensor], alpha: float) -> None:
    def second_form(x: Tensor, teacher: Tensor, fake: Tensor) -> Tensor:
        gap = teacher - fake
        return ((1 - alpha) * gap**2 + gap * (fake - x)).sum()

    first = gradients(lambda *a: sid_loss(*a, alpha).sum(), *three)
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(first, gradients(second_form, *three), strict=True))


def test_difference_of_errors_is_twice_sid_at_one_half(three: tuple[Tensor, Tensor, Tensor]) -> None:
    """|T - x|^2 - |F - x|^2 = |gap|^2 + 2 <gap, F - x>."""
    x, teacher, fake = three
    difference = per_sample((teacher - x) ** 2) - per_sample((fake - x) ** 2)
    assert torch.allclose(difference, 2 * sid_loss(*three, 0.5), rtol=1e-12)


@pytest.mark.parametrize(("first", "alpha"), [(1.0, 0.5), (0.0, 1.0)])
def test_fgm_on_a_flow_is_sid_over_t_squared(three: tuple[Tensor, Tensor, Tensor], first: float, alpha: float) -> None:
    t = torch.tensor([0.01, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    fgm = fgm_loss(*three, velocity_weight(Flow(), t), first, 1.0)
    assert torch.allclose(fgm, 2 / t**2 * sid_loss(*three, alpha), rtol=1e-12)


def test_fgm_in_velocities(three: tuple[Tensor, Tensor, Tensor]) -> None:
    """The paper's own form: first |u_T - u_F|^2 + 2 second <u_T - u_F, u_F - (noise - x)> at the same x_t."""
    x, teacher, fake = three
    t = torch.tensor([0.01, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    s = t[:, None, None, None]
    noise = torch.ones_like(x) / 3
    x_t = (1 - s) * x + s * noise
    u_teacher, u_fake = (x_t - teacher) / s, (x_t - fake) / s
    gap = u_teacher - u_fake
    paper = per_sample(0.7 * gap**2 + 2 * 1.3 * gap * (u_fake - (noise - x)))
    assert torch.allclose(fgm_loss(*three, velocity_weight(Flow(), t), 0.7, 1.3), paper, rtol=1e-9)


def test_l1_normaliser(three: tuple[Tensor, Tensor, Tensor]) -> None:
    """One over the mean absolute error of a sample, floored, without graph."""
    x, teacher, _ = three
    weight = l1_normaliser(x.requires_grad_(), teacher.requires_grad_())
    assert torch.allclose(weight, 1 / (x - teacher).abs().mean((1, 2, 3)), rtol=1e-12)
    assert not weight.requires_grad
    assert l1_normaliser(x, x).tolist() == pytest.approx([1e5] * 5)
