"""The learned uncertainty of EDM2's networks in the losses of SiD and SiDA."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from distill import EDM, UserError
from distill.guidance import classifier_free
from distill.objectives import Batch, Denoisers
from distill.objectives.guided import Guided
from distill.objectives.objective import denoising_loss
from distill.objectives.sid import SiD
from distill.objectives.sida import SiDA, share_weights
from distill.random import Random
from distill.teachers import EDM2Net
from distill.times import LogNormal
from tests.distill.objectives.test_golden import Golden, Toy, assert_same, load, with_critic
from tests.tiny import tiny_edm2
from tests.toys import At, given

TIMES = LogNormal(-0.4, 1.0)
SID, SIDA = (
    SiD(alpha=1.0, fake_times=TIMES, uncertainty=True),
    SiDA(fake_times=TIMES, discriminator=100.0, reduction="rank", uncertainty=True),
)


class Uncertain(Toy):
    """The toy network of the golden vectors, with u = a ln(sigma) + b."""

    predicts_uncertainty = True
    head: nn.Parameter

    def logvar(self, time: Tensor) -> Tensor:
        return self.head[0] * time / 250 + self.head[1]


def uncertain() -> tuple[Golden, Denoisers, Uncertain, Tensor]:
    """Return the numbers, both denoisers, the fake's network, and x0 as a leaf."""
    golden, nets, network, x = load("sida_edm2")
    network.__class__ = Uncertain
    assert isinstance(network, Uncertain)
    network.head = nn.Parameter(golden["logvar"])
    return golden, nets, network, x


def batch(golden: Golden, u: Tensor) -> Batch:
    return Batch(torch.full_like(golden["x0"], torch.nan), given(golden["noise"], u), real=golden["real"])


def test_generator_is_the_authors() -> None:
    golden, nets, network, x = uncertain()
    at = batch(golden, golden["u"] / 0.8)
    term = SID.generator_loss(nets, x, at)["sid"]
    assert_same(term, golden["sid_generator_loss"], 100)
    assert_same(torch.autograd.grad(term.sum(), x)[0], golden["sid_generator_grad_x0"], 100)

    terms = SIDA.generator_loss(replace(with_critic(SIDA, nets), images=200_000), x, at)
    assert_same(terms["sid"], golden["sida_generator_sid"], 50)
    assert_same(terms["adversarial"].sum()[None], golden["sida_generator_adversarial"].sum()[None], 0.005)
    gradient, head = torch.autograd.grad(
        (terms["sid"] + terms["adversarial"]).sum(), [x, network.head], allow_unused=True
    )
    assert_same(gradient, golden["sida_generator_grad_x0"])
    assert head is None  # the generator's loss says nothing to the head


@pytest.mark.parametrize("reduction", ["rank", "all"])
def test_fake_is_the_authors(reduction: str) -> None:
    """The head learns from both losses, under the mean over all ranks too, which has no graph."""
    golden, nets, network, x = uncertain()
    at = batch(golden, torch.special.ndtr(golden["normal"].double()))
    term = SID.fake_loss(nets, x, at)["denoising"]
    assert_same(term, golden["sid_fake_loss"])
    for name, parameter in {"weight": network.weight, "logvar": network.head}.items():
        (gradient,) = torch.autograd.grad(term.sum(), parameter, retain_graph=True)
        assert_same(gradient, golden[f"sid_fake_grad_{name}"])

    objective = replace(SIDA, reduction=reduction)  # type: ignore[arg-type]
    nets = replace(with_critic(objective, nets), mean=lambda values: values.detach().mean(0))
    terms = objective.fake_loss(nets, x, at)
    assert_same(terms["denoising"], golden["sida_fake_loss"])
    assert_same(terms["discriminator"].sum()[None], golden["sida_fake_discriminator"].sum()[None], 100)
    trained = {"weight": network.weight, "logvar": network.head, "encoder": network.encoder.weight}
    found = torch.autograd.grad((terms["denoising"] + terms["discriminator"]).sum(), list(trained.values()))
    for gradient, name in zip(found, trained, strict=True):
        assert_same(gradient, golden[f"sida_fake_grad_{name}"])


def test_two_ranks_have_the_slope_of_one() -> None:
    """mean_i w_i mean_j b_j over the samples of all ranks, where each rank has a mean of its own gradients."""
    torch.manual_seed(0)
    entropy, weight = torch.rand(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64)

    def slopes(ranks: int) -> Tensor:
        b, w = (value.clone().requires_grad_() for value in (entropy, weight))
        means = {6 // ranks: iter([weight.mean(), entropy.mean()] * ranks)}
        nets = Denoisers(EDM(), None, None, mean=lambda values: next(means[len(values)]))  # type: ignore[arg-type]
        for rows in range(0, 6, 6 // ranks):
            part = slice(rows, rows + 6 // ranks)
            (share_weights(b[part], w[part], "all", nets).mean() / ranks).backward()
        assert b.grad is not None and w.grad is not None
        return torch.stack([b.grad, w.grad])

    exact = torch.stack([weight.mean().expand(6), entropy.mean().expand(6)]) / 6
    assert torch.allclose(slopes(1), exact, rtol=1e-12) and torch.allclose(slopes(3), exact, rtol=1e-12)


def test_the_best_uncertainty_is_the_log_of_the_loss() -> None:
    """The head of an EDM2 network finds ln E w |D - x|^2 / N at a noise level, where the rest stands still."""
    fake, level = tiny_edm2(), At(0.5)
    random = Random.at(0, torch.arange(64))
    x, cond = random.normal(1, 8, 8), fake.network.example(64)

    def loss(uncertainty: bool) -> Tensor:
        return denoising_loss(fake, fake.path, x, cond, level, "edm", random, uncertainty=uncertainty).mean() / 64

    fake.requires_grad_(False)
    head = cast(EDM2Net, fake.network).logvar_linear.weight.requires_grad_()
    optimizer = torch.optim.Adam([head], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        loss(True).backward()
        optimizer.step()
    found = fake(x[:1], torch.tensor([0.5], dtype=torch.float64), None, "uncertainty")
    assert found.shape == (1,) and found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(float(loss(False).detach().log()), abs=1e-3)


def test_guidance_leaves_it_alone() -> None:
    fake = tiny_edm2()
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    plain = fake(x, t, None, "uncertainty")
    assert plain.unique().numel() == 3
    for in_one_pass in (False, True):
        for scale in (0.0, 1.0, 3.0):
            guided = classifier_free(fake, scale, fake.null, in_one_pass)
            assert torch.equal(guided(x, t, fake.network.example(3), "uncertainty"), plain)


def test_a_network_without_it_is_refused() -> None:
    _, nets, _, _ = load("sida_edm2")
    for objective in (SID, SIDA, Guided(objective=SID)):
        with pytest.raises(UserError, match=r"^uncertainty: needs a teacher whose network predicts .*, Toy does not"):
            objective.check(nets.teacher)  # type: ignore[arg-type]
    SID.check(tiny_edm2())
