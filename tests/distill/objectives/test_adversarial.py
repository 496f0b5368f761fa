"""Schedules, couplings and costs of the objectives with a discriminator."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from distill import EDM, UserError
from distill.conditions import Condition
from distill.discriminator import R1, AdaptiveNoise, adversarial_loss, discriminator_loss
from distill.guidance import classifier_free
from distill.objectives import Denoisers, Estimates, Objective, l1_normaliser
from distill.objectives.dmd2 import DMD2
from distill.objectives.f_distill import DIVERGENCE_WEIGHTS, Divergence, FDistill, density_ratio
from distill.objectives.objective import batch_mean
from distill.objectives.sida import SiDA
from distill.objectives.uni_instruct import UniInstruct
from distill.times import Karras
from tests.distill.objectives.test_contract import make
from tests.toys import gradients


def test_sida_by_images() -> None:
    """The fake alone, then SiD alone at weight 1, then the mixture."""
    objective = SiDA()
    assert [objective.trains_generator(images) for images in (0, 99_999, 100_000)] == [False, False, True]
    case = make(objective, EDM())
    early, late = (
        objective.generator_loss(replace(case.nets, images=images), case.x, case.batch) for images in (199_999, 200_000)
    )
    assert list(early) == ["sid"] and list(late) == ["sid", "adversarial"]
    assert torch.equal(late["sid"], early["sid"] / 2)


@pytest.mark.parametrize("reduction", ["all", "rank", "sample"])
def test_sida_reductions(reduction: str) -> None:
    """Against the authors' form, a cross-entropy of the batch under each sample's weight, for "all" and "rank"."""
    objective = SiDA(reduction=reduction, mix=1.0, adversarial=1.0)  # type: ignore[arg-type]
    case = make(objective, EDM())

    def ours(x: Tensor) -> Tensor:
        return objective.generator_loss(case.nets, x, case.batch)["adversarial"].sum()

    def published(x: Tensor) -> Tensor:
        s = objective.estimate(case.nets, x, case.batch, objective.times, logits=True)
        assert s.logits is not None
        weight, entropy = 18 * l1_normaliser(x, s.teacher), adversarial_loss(s.logits)
        return {
            "rank": (weight * entropy.mean()).sum(),
            "sample": (weight * entropy).sum(),
            "all": (18 * 0.7 * entropy).sum(),  # the mean over all ranks, as `nets.mean` of the case gives it
        }[reduction]

    (mine,), (theirs,) = gradients(ours, case.x), gradients(published, case.x)
    assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-7)


def test_uni_instruct_under_reverse_kl_is_sida_unmixed() -> None:
    case = make(SiDA(), EDM())
    sida = SiDA().generator_loss(case.nets, case.x, case.batch)
    uni = UniInstruct(divergence="reverse_kl")
    nets = replace(case.nets, mean=batch_mean)
    ours = uni.generator_loss(nets, case.x, case.batch)
    assert torch.allclose(ours["uni_instruct"], 2 * sida["sid"], rtol=1e-5)
    theirs = replace(SiDA(), reduction="rank").generator_loss(nets, case.x, case.batch)
    assert torch.allclose(ours["adversarial"], 2 * theirs["adversarial"], rtol=1e-5)
    early = uni.generator_loss(replace(nets, images=199_999), case.x, case.batch)
    assert list(early) == ["uni_instruct"] and torch.allclose(early["uni_instruct"], 2 * sida["sid"], rtol=1e-5)
    assert [uni.trains_generator(images) for images in (99_999, 100_000)] == [False, True]


@pytest.mark.parametrize("objective", [FDistill(bins=1), UniInstruct()], ids=["f_distill", "uni_instruct"])
@pytest.mark.parametrize("divergence", ["forward_kl", "jeffreys"])
def test_ratios_weight_the_samples(objective: FDistill | UniInstruct, divergence: Divergence) -> None:
    """The weight is h(exp(logit)) over its mean, without a graph. One bin divides by the mean first."""
    objective = replace(objective, divergence=divergence)
    case = make(UniInstruct(), EDM())  # for the plainer discriminator
    nets = replace(case.nets, memory=objective.new_memory(), mean=batch_mean)
    plain = replace(objective, divergence="reverse_kl")
    ours, theirs = (next(iter(each.generator_loss(nets, case.x, case.batch).values())) for each in (objective, plain))
    s = objective.estimate(case.nets, case.x, case.batch, objective.times, logits=True)
    assert s.logits is not None
    ratio = s.logits.detach().flatten(1).mean(1).exp()
    if isinstance(objective, FDistill):
        ratio = ratio / ratio.mean()
    weight = DIVERGENCE_WEIGHTS[divergence](ratio)
    weight = weight / weight.mean()
    assert weight.std() > 0.05
    assert torch.allclose(ours, weight * theirs, rtol=1e-4)
    mine, plainly = (torch.autograd.grad(each.sum(), case.x, retain_graph=True)[0] for each in (ours, theirs))
    assert torch.allclose(mine, weight[:, None, None, None] * plainly, rtol=1e-4, atol=1e-4)


def test_density_ratio() -> None:
    logits = torch.tensor([[1.0, 3.0], [-50.0, 20.0], [40.0, 12.0]], requires_grad=True)
    assert density_ratio(logits).tolist() == pytest.approx([math.exp(2), 1.0, math.exp(10)], rel=1e-6)
    assert density_ratio(logits, 2.0, 20.0).tolist() == pytest.approx([math.exp(2), 2.0, 20.0], rel=1e-6)
    assert not density_ratio(logits).requires_grad


def test_ratio_by_time_bins() -> None:
    """Deciles of the law of times; a mean that remembers; empty bins and broken numbers leave it as it is."""
    objective, nsr = FDistill(memory=0.5, ratio_range=(1e-3, 1e3)), torch.tensor([0.01, 0.011, 3.0, 30.0])
    nets = Denoisers(EDM(), None, None, memory=objective.new_memory())  # type: ignore[arg-type]

    def normalised(*ratios: float) -> list[float]:
        logits = torch.tensor(ratios).log()[:, None]
        return objective.normalised_ratio(nets, Estimates(nsr, nsr, nsr.double(), nsr, logits)).tolist()

    edges = objective.times.nsr(torch.arange(1, 10).double() / 10, EDM())
    first, middle, last = torch.bucketize(torch.tensor([0.01, 3.0, 30.0]).double(), edges).tolist()
    assert 0 <= first < middle < last < 10
    assert normalised(2, 4, 5, 0.5) == pytest.approx([2 / 2, 4 / 2, 5 / 3, 0.5 / 0.75], rel=1e-5)
    assert normalised(2, 4, 5, 0.5) == pytest.approx([2 / 2.5, 4 / 2.5, 5 / 4, 0.5 / 0.625], rel=1e-5)
    memory = nets.memory["ratio"].clone()
    assert memory[[first, middle, last]].tolist() == pytest.approx([2.5, 4, 0.625])
    assert memory.sum() == pytest.approx(7 + 7.125)
    normalised(float("nan"), 1, 4, 0.625)
    assert torch.equal(nets.memory["ratio"], memory)


def test_weights_by_value() -> None:
    """h(r) = r^2 f''(r), by automatic differentiation of the divergences' own f."""
    divergences = {
        "reverse_kl": lambda r: -r.log(),
        "forward_kl": lambda r: r * r.log(),
        "js": lambda r: r * r.log() - (1 + r) * ((1 + r) / 2).log(),
        "softened_reverse_kl": lambda r: (1 + r) * ((1 + r) / r).log(),
        "neyman": lambda r: 1 / r,
        "squared_hellinger": lambda r: 1 - r.sqrt(),
        "jeffreys": lambda r: (r - 1) * r.log(),
    }
    assert divergences.keys() == DIVERGENCE_WEIGHTS.keys()
    r = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
    for name, f in divergences.items():
        curvature = torch.func.vmap(torch.func.grad(torch.func.grad(f)))(r)
        assert torch.allclose(DIVERGENCE_WEIGHTS[name](r), r**2 * curvature, rtol=1e-12), name  # type: ignore[index]


@pytest.mark.parametrize(
    ("objective", "fake_phase", "generator_phase"),
    [
        (SiDA(), ["both", "logits"], ["both"]),
        (UniInstruct(), ["both", "logits"], ["both"]),
        (DMD2(), ["both", "logits"], ["x0", "logits"]),
        (DMD2(judge_times=Karras()), ["x0", "logits", "logits"], ["x0", "logits"]),
        (DMD2(noise=AdaptiveNoise()), ["x0", "logits", "logits"], ["x0", "logits"]),
        (FDistill(r1=R1(weight=1.0)), ["both", "logits"], ["both", "logits"]),
        (FDistill(r1=R1(weight=1.0, noise=0.1)), ["both", "logits", "logits"], ["both", "logits"]),
    ],
)
def test_passes_through_the_fake(objective: Objective, fake_phase: list[str], generator_phase: list[str]) -> None:
    """Real samples, and what is only judged, go no further than the tap; so SiDA costs 11 F and 3 encoders."""
    case = make(objective, EDM())
    wants: list[str] = []

    def fake(x_t: Tensor, t: Tensor, cond: Condition, want: str = "x0") -> Any:
        wants.append(want)
        return case.nets.fake(x_t, t, cond, want)

    nets = replace(case.nets, fake=fake)
    objective.fake_loss(nets, case.x, case.batch)
    assert wants == fake_phase
    wants.clear()
    objective.generator_loss(nets, case.x, case.batch)
    assert wants == generator_phase


@pytest.mark.parametrize("objective", [DMD2(), FDistill()], ids=["dmd2", "f_distill"])
def test_adversarial_terms_count_elements(objective: DMD2 | FDistill) -> None:
    """Weights are those that the authors give for losses averaged over elements. R1 is in the discriminator's loss."""
    case = make(UniInstruct(), EDM())  # for the plainer discriminator
    case.nets = replace(case.nets, memory=objective.new_memory())
    draw = case.batch.random.stream("judge")
    x_t, t, _ = EDM().draw(case.x, objective.fake_times, draw)
    ours = objective.generator_loss(case.nets, case.x, case.batch)["adversarial"]
    logits = case.nets.fake(x_t, t, case.batch.cond, "logits")
    assert torch.allclose(ours, 18 * objective.adversarial * adversarial_loss(logits), rtol=1e-5)

    assert case.batch.real is not None
    x_t, t, noise = EDM().draw(case.x.detach(), objective.fake_times, case.batch.random.stream("fake"))
    real_t = (case.batch.real + noise * t[:, None, None, None]).float()
    both = [case.nets.fake(value, t, case.batch.cond, "logits") for value in (x_t, real_t)]
    for weight in (0.0, 1e3):
        loss = replace(objective, r1=R1(weight=weight)).fake_loss(case.nets, case.x, case.batch)["discriminator"]
        real = case.batch.real.clone().requires_grad_()
        judged = case.nets.fake(EDM().diffuse(real, t, noise), t, case.batch.cond, "logits")
        (slope,) = torch.autograd.grad(judged.flatten(1).mean(1).sum(), real)
        wanted = torch.stack(discriminator_loss(*both)).sum(0) + weight / 2 * (slope**2).flatten(1).sum(1)
        assert torch.allclose(loss, 18 * objective.discriminator * wanted, rtol=1e-4)


def test_dmd2_asks_its_discriminator_where_its_law_says() -> None:
    """Adaptive noise keeps to the low end of the law, moves, and serves both phases."""
    objective = DMD2(noise=AdaptiveNoise(low=0.2, images=100))
    case = make(objective, EDM())
    top = float(objective.fake_times.nsr(torch.tensor(0.2).double(), EDM()))
    nets = replace(case.nets, images=10, mean=lambda values: torch.tensor(0.9))
    objective.fake_loss(nets, case.x, case.batch)
    assert case.nets.memory["share"].item() == pytest.approx(0.3)
    (_, denoised, _), (_, judged, _), (_, real, _) = case.calls
    assert float(judged.max()) < top < float(denoised.max()) and torch.equal(judged, real)
    case.calls.clear()
    objective.generator_loss(nets, case.x, case.batch)
    higher = float(objective.fake_times.nsr(torch.tensor(0.3).double(), EDM()))
    assert float(case.calls[2][1].max()) < higher


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_head_on_the_teachers_features(guidance: float) -> None:
    """The fake's body learns to denoise alone, and the head from features that stand still, guided or not."""
    objective = DMD2(features="teacher")
    case = make(objective, EDM())
    teacher: Any = case.teacher if guidance == 1 else classifier_free(case.teacher, guidance, lambda cond: cond)
    nets, batch, head = replace(case.nets, teacher=teacher), case.batch, case.fake.head
    assert batch.real is not None

    def logits(sample: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        x_t = EDM().diffuse(sample, t, noise)
        found: Tensor = head(*case.teacher.features(x_t, t, batch.cond, *case.fake.taps))
        return found

    _, t, noise = EDM().draw(case.x.detach(), objective.fake_times, batch.random.stream("fake"))
    on_fake, on_real = discriminator_loss(logits(case.x.detach(), t, noise), logits(batch.real, t, noise))
    case.fake.requires_grad_(True)
    found = objective.fake_loss(nets, case.x, batch)
    assert torch.allclose(found["discriminator"], 18 * objective.discriminator * (on_fake + on_real), rtol=1e-6)
    body, ours = list(case.fake.denoiser.parameters()), list(head.parameters())
    for term, trained, still in (("discriminator", ours, body), ("denoising", body, ours)):
        loss = found[term].sum()
        moved = torch.autograd.grad(loss, trained, allow_unused=True, retain_graph=True)
        assert any(one is not None and bool(one.any()) for one in moved)
        assert set(torch.autograd.grad(loss, still, allow_unused=True, retain_graph=True)) == {None}

    def ask(x: Tensor) -> Tensor:
        return objective.generator_loss(nets, x, batch)["adversarial"].sum()

    def by_hand(x: Tensor) -> Tensor:
        _, t, noise = EDM().draw(x, objective.fake_times, batch.random.stream("judge"))
        return 18 * objective.adversarial * adversarial_loss(logits(x, t, noise)).sum()

    (mine,), (theirs,) = gradients(ask, case.x), gradients(by_hand, case.x)
    assert torch.allclose(mine, theirs, rtol=1e-5) and bool(mine.any())


@pytest.mark.parametrize(
    ("make_one", "line"),
    [
        (lambda: SiDA(mix=1.5), "mix: must be in [0, 1], got 1.5"),
        (lambda: FDistill(ratio_range=(0.0, 1.0)), "ratio_range: must rise from above 0, got [0.0, 1.0]"),
        (lambda: FDistill(bins=0), "bins: must be at least 1, got 0"),
        (lambda: FDistill(memory=1.0), "memory: must be at least 0 and below 1, got 1.0"),
    ],
)
def test_settings_out_of_range(make_one: Callable[[], Objective], line: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(line)}$"):
        make_one()
