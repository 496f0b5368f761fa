"""Identities between the methods, on arbitrary numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from distill import Denoiser, Flow, Random
from distill.conditions import Condition
from distill.objectives import Batch, Denoisers, denoising_loss, l1_normaliser, per_sample
from distill.objectives.diff_instruct import diff_instruct_loss
from distill.objectives.dmd import dmd_loss
from distill.objectives.fgm import fgm_loss, velocity_weight
from distill.objectives.realuid import realuid_fake_loss, realuid_loss
from distill.objectives.score_mismatching import ScoreMismatching
from distill.objectives.sid import sid_loss
from distill.objectives.sim import Distance, Exponential, Huber, Power, PseudoHuber, SquaredL2, sim_loss
from tests.toys import Tanh, gradients

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


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.92, 0.94)])
def test_realuid_in_x0(three: tuple[Tensor, Tensor, Tensor], a: float, b: float) -> None:
    """As published, and as FGM (1, 1) = 2/t^2 SiD(1/2) plus what real images bring."""
    x, teacher, fake = three
    t = torch.tensor([0.01, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    s, noise = t[:, None, None, None], torch.ones_like(x) / 3
    x_t = (1 - s) * x + s * noise
    u_teacher, u_fake, u = (x_t - teacher) / s, (x_t - fake) / s, noise - x
    ours = realuid_loss(u, u_teacher, u_fake, a, b)
    published = per_sample(a * (u_teacher - b / a * u) ** 2 - a * (u_fake - b / a * u) ** 2)
    assert torch.allclose(ours, published, rtol=1e-9)
    fgm = fgm_loss(*three, velocity_weight(Flow(), t), 1.0, 1.0)
    assert torch.allclose(ours, a * fgm + 2 * (a - b) * per_sample((u_teacher - u_fake) * u), rtol=1e-9)
    assert torch.allclose(fgm, 2 / t**2 * sid_loss(*three, 0.5), rtol=1e-12)


def test_realuid_fake_loss(three: tuple[Tensor, Tensor, Tensor]) -> None:
    """At (1, 1) plain flow matching; without a square where a = 0, as its gradient's limit."""
    x, fake, _ = three
    assert torch.allclose(realuid_fake_loss(x, fake, 1.0, 1.0), per_sample((fake - x) ** 2), rtol=1e-12)
    at_zero, near = (
        gradients(lambda fake, a=a: realuid_fake_loss(x, fake, a, 0.06).sum(), fake)[0] for a in (0.0, 1e-9)
    )
    assert torch.allclose(at_zero, near, rtol=1e-6)


DISTANCES: list[tuple[Distance, Callable[[Tensor, Tensor], Tensor]]] = [
    (SquaredL2(), lambda y, c: per_sample(y**2)),
    (Power(p=6), lambda y, c: per_sample(y**6)),
    (PseudoHuber(c=0.7), lambda y, c: (per_sample(y**2) + c**2).sqrt() - c),
    (
        Huber(c=0.7),
        lambda y, c: torch.where(per_sample(y**2) < c**2, per_sample(y**2) / 2, c * y.flatten(1).norm(dim=1)),
    ),
    (Exponential(c=0.7), lambda y, c: c**2 * (per_sample(y**2) / c**2).exp()),
]
"""Distances and d(y) [B] as written, with c for the whole sample."""


@pytest.mark.parametrize(("distance", "d"), DISTANCES, ids=[type(distance).__name__ for distance, _ in DISTANCES])
def test_distances_are_given_by_their_derivative(
    three: tuple[Tensor, Tensor, Tensor], distance: Distance, d: Callable[[Tensor, Tensor], Tensor]
) -> None:
    y = three[0] * torch.tensor([0.0, 1e-3, 0.5, 1.0, 1.5], dtype=torch.float64)[:, None, None, None]
    c = torch.tensor(0.7 * 18**0.5, dtype=torch.float64)
    (derivative,) = gradients(lambda y: d(y, c).sum(), y)
    assert torch.allclose(distance.factor(y) * y, derivative, rtol=1e-12)
    (slope,) = gradients(lambda y: (distance.factor(y) * y).sum(), y)
    assert bool(slope.isfinite().all())  # also where teacher and fake agree, as at the start


def test_sim_with_the_squared_distance_is_twice_sid_at_one(three: tuple[Tensor, Tensor, Tensor]) -> None:
    unit = torch.tensor([0.1, 0.5, 1.0, 2.0, 9.0], dtype=torch.float64)
    sim = sim_loss(*three, SquaredL2(), unit)
    assert torch.allclose(sim, 2 * unit**2 * sid_loss(*three, 1.0), rtol=1e-12)


def test_pseudo_huber_in_score_space(three: tuple[Tensor, Tensor, Tensor]) -> None:
    """c there is c sigma^2/alpha in x0, and the root is part of the graph."""
    unit = torch.tensor([0.1, 0.5, 1.0, 2.0, 9.0], dtype=torch.float64)

    def in_x0(x: Tensor, teacher: Tensor, fake: Tensor) -> Tensor:
        gap = teacher - fake
        root = (per_sample(gap**2) + 18 * (0.3 / unit) ** 2).sqrt()
        return unit * per_sample(gap * (fake - x)) / root

    ours = gradients(lambda *three: sim_loss(*three, PseudoHuber(c=0.3), unit).sum(), *three)
    exact = gradients(lambda *three: in_x0(*three).sum(), *three)
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(ours, exact, strict=True))


def test_score_mismatching_on_real_images_is_denoising() -> None:
    """In units of the noise; on generated ones the noise is another, which no fake can find."""
    path, random = Flow(), Random.at(0, torch.arange(5))
    denoiser = Denoiser(Tanh(18, 1), path, "v").double()
    x, real = (random.stream(name).normal(2, 3, 3, dtype=torch.float64) for name in ("x", "real"))
    objective, cond = ScoreMismatching(), Condition(labels=torch.arange(5) % 3)
    nets = Denoisers(path, denoiser, denoiser)
    terms = objective.fake_loss(nets, x, Batch(x, random, cond, real))
    denoising = denoising_loss(denoiser, path, real, cond, objective.fake_times, "eps", random.stream("real"))
    assert torch.allclose(terms["real"], denoising, rtol=1e-9)

    seeing = Denoisers(path, denoiser, lambda x_t, t, cond: x)  # finds the noise that is there
    losses = [objective.fake_loss(seeing, x, Batch(x, Random.at(s, torch.arange(5)), cond, x)) for s in range(200)]
    mean = torch.stack([terms["generated"] for terms in losses]).mean()
    assert mean.item() == pytest.approx(2 * 18, rel=0.03)  # |noise - other|^2
    assert max(float(terms["real"].max()) for terms in losses) < 1e-9


def test_l1_normaliser(three: tuple[Tensor, Tensor, Tensor]) -> None:
    """One over the mean absolute error of a sample, floored, without graph."""
    x, teacher, _ = three
    weight = l1_normaliser(x.requires_grad_(), teacher.requires_grad_())
    assert torch.allclose(weight, 1 / (x - teacher).abs().mean((1, 2, 3)), rtol=1e-12)
    assert not weight.requires_grad
    assert l1_normaliser(x, x).tolist() == pytest.approx([1e5] * 5)
