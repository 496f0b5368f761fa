"""The measurements of a probe, on teachers whose numbers are known in closed form."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from distill.denoiser import Denoiser
from distill.objectives import SiD
from distill.paths import EDM, Flow
from distill.random import Random
from distill.teachers import GaussianMixture
from trainers.data import Dataset, Digits
from trainers.probe import levels, measure, network, rules
from trainers.probe.entry import Components, students_by_entry
from trainers.probe.findings import Findings
from trainers.probe.levels import Level
from trainers.probe.precision import bfloat16_gain
from trainers.probe.subject import Budget, Subject
from trainers.recipe.run import Run

SHAPE, STD, COUNT = (2, 3, 4), 0.3, 512
MEANS = torch.stack([torch.full(SHAPE, -0.5), torch.full(SHAPE, 0.5)])


def subject(teacher: Denoiser, data: Dataset, **changes: Any) -> Subject:
    run = Run(name="probe", teacher="teacher", data=Digits(), objective=SiD(), images=1, batch_size=1)
    return replace(Subject(run, teacher, teacher, data, torch.device("cpu"), 10.0), **changes)


@pytest.fixture(scope="module")
def gaussian() -> Subject:
    """Two classes, N(-0.5, 0.3^2) and N(0.5, 0.3^2), with their exact denoiser on a flow path."""
    teacher = GaussianMixture(Flow(), MEANS, torch.full((2,), STD))
    teacher.network.classes = 2
    labels = torch.arange(COUNT) % 2
    images = teacher.data(Random.at(0, torch.arange(COUNT)), labels)
    return subject(teacher, Dataset("gaussian", COUNT, SHAPE, labels, lambda positions: images[positions]))


def test_the_error_is_that_of_the_posterior_mean(gaussian: Subject) -> None:
    reference = gaussian.reference(COUNT)
    found = levels.error_by_level(gaussian, reference)
    assert [round(one.nsr, 4) for one in found] == list(levels.LEVELS)
    exact = [STD**2 * one.nsr**2 / (STD**2 + one.nsr**2) for one in found]
    assert [one.error for one in found] == pytest.approx(exact, rel=0.05)
    whole = levels.spread(gaussian, reference, found)
    assert whole == pytest.approx(STD**2, rel=0.03)  # within the classes: over all it is 0.34
    assert levels.middle_level(found, whole) == pytest.approx(STD * (0.4 / 0.6) ** 0.5, rel=0.1)
    for one in found:  # the exact denoiser lies between the two bounds from the data, but for the noise of 512 samples
        assert one.floor is not None and one.ceiling is not None
        assert one.floor < 1.05 * one.error and one.error < 1.05 * one.ceiling
    assert found[-1].floor == pytest.approx(whole, rel=0.02)
    assert found[-1].ceiling == pytest.approx(whole, rel=0.02)


def test_the_rules_follow_from_the_error(gaussian: Subject) -> None:
    found = levels.error_by_level(gaussian, gaussian.reference(COUNT))
    law, _ = rules.times(found, STD**2)
    variance = math.exp(2 * law.mean)
    assert variance / (STD**2 + variance) == pytest.approx(0.4, abs=0.05)  # the error over that in pure noise
    assert law.std == 1.2
    table, _ = rules.weight(found)
    assert table.weight == pytest.approx([1 / one.error for one in found], rel=0.01)


def test_the_weight_is_that_of_the_estimate_whatever_the_form(gaussian: Subject) -> None:
    """The same estimates as noise, from a network that is asked for eps."""

    class AsNoise(nn.Module):
        def forward(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
            t = (time / 1000).double()
            x0 = gaussian.teacher(x.double(), t, labels)
            at = t[:, None, None, None]
            noise: Tensor = (x - (1 - at) * x0) / at
            return noise.to(x.dtype)

    form = Denoiser(AsNoise(), Flow(), "eps").double()
    form.network.shape, form.network.classes = SHAPE, 2
    reference = gaussian.reference(64)
    ours = rules.weight(levels.error_by_level(gaussian, reference))[0]
    other = rules.weight(levels.error_by_level(replace(gaussian, teacher=form, target=form), reference))[0]
    assert other.weight == pytest.approx(ours.weight, rel=0.01)


def test_the_best_entry_is_where_the_student_is_nearest(gaussian: Subject) -> None:
    """The untrained student of a class is mean + STD^2 / (STD^2 + nsr^2) (nsr z - mean), in closed form."""
    reference = gaussian.reference(COUNT)
    components = Components(reference.samples)
    found = students_by_entry(gaussian, reference, components)
    for one in found:
        shrink = STD**2 / (STD**2 + one.nsr**2)
        mean, std = 0.5 * (1 - shrink), shrink * one.nsr
        assert one.contrast * components.std == pytest.approx((mean**2 + std**2) ** 0.5, rel=0.03)
        # The Frechet distance between the two normal laws of a class, which the components keep.
        exact = math.prod(SHAPE) * ((0.5 - mean) ** 2 + (STD - std) ** 2)
        assert one.distance == pytest.approx(exact, rel=0.1)
    assert rules.entry(found)[0] == 0.7
    assert components.distance(reference.samples) == pytest.approx(0, abs=1e-9)


def test_without_images_the_teachers_samples_are_the_reference(gaussian: Subject) -> None:
    alone = replace(gaussian, dataset=Dataset("none", 2, SHAPE, torch.arange(2), None))
    reference = alone.reference(COUNT)
    assert not reference.are_data and gaussian.reference(8).are_data
    assert reference.cond.labels is not None
    for label in (0, 1):
        made = reference.samples[reference.cond.labels == label]
        assert made.mean().item() == pytest.approx(label - 0.5, abs=0.02)
        assert made.std().item() == pytest.approx(STD, rel=0.1)  # Heun in 35 evaluations
    found = levels.error_by_level(alone, reference)
    assert found[0].floor is None and found[0].ceiling is None


def test_guidance_moves_the_times_up() -> None:
    """From 0.4 of the error in pure noise without guidance to 0.96 of it at the scale 2, and no further."""
    found = [Level(float(2**n), error, None, None, 0.0) for n, error in enumerate((0.1, 0.3, 0.8, 1.0))]
    shares = [levels.middle_share(scale) for scale in (0.5, 1.0, 2**0.25, 2.0, 7.5)]
    assert shares == pytest.approx([0.4, 0.4, 0.7, 0.9625, 0.9625])
    medians = [2 * 2**0.2, 2 * 2**0.8, 4 * 2 ** (0.1625 / 0.2)]
    for whole in (1.0, 1.1):  # the largest error is the aim where that in pure noise is not reached
        laws = [rules.times(found, whole, scale)[0] for scale in (1.0, 2**0.25, 2.0)][whole > 1 :]
        assert [math.exp(law.mean) for law in laws] == pytest.approx(medians[whole > 1 :], rel=0.01)


@pytest.mark.parametrize(
    ("errors", "middle"),
    [((0.1, 0.3, 0.8), 2 * (4 / 2) ** 0.2), ((0.6, 0.8, 0.9), None), ((0.1, 0.2, 0.3), None)],
)
def test_the_middle_level_is_between_its_neighbours(errors: tuple[float, ...], middle: float | None) -> None:
    found = [Level(float(2**n), error, None, None, 0.0) for n, error in enumerate(errors)]
    assert levels.middle_level(found, 1.0) == (None if middle is None else pytest.approx(middle))


def test_a_budget_counts_what_fits_and_says_when_too_little_does() -> None:
    budget = Budget(100.0, 0.01)
    assert budget.samples(0.5, 10, most=1000) == 500
    assert budget.samples(0.5, 10, most=64) == 64
    assert budget.samples(0.5, 1000, most=64) == 0


class Chain(nn.Module):
    """Four layers, with dropout and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.blocks = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)])
        self.norm, self.dropout = nn.BatchNorm2d(4), nn.Dropout(0.5)

    def forward(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        h: Tensor = self.dropout(self.norm(self.second(self.first(x))))
        for block in self.blocks:
            h = block(h)
        return h


def test_train_mode_is_seen_and_leaves_no_trace(gaussian: Subject) -> None:
    torch.manual_seed(0)
    teacher = Denoiser(Chain(), EDM(), "x0").eval()
    teacher.network.shape, teacher.network.classes = SHAPE, 2
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    state = torch.get_rng_state()
    tried = replace(gaussian, teacher=teacher, target=teacher)
    assert network.train_mode_difference(tried) > 0.1
    assert network.train_mode_difference(gaussian) == 0
    assert torch.equal(torch.get_rng_state(), state) and not teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_guided_samples_are_the_reference_of_a_guided_recipe(gaussian: Subject) -> None:
    from distill.objectives import Guided

    objective = Guided(teacher_cfg=2.0, fake_cfg=1.0, fake_training_cfg=1.0, objective=SiD())
    guided = replace(gaussian, target=objective.target(gaussian.teacher))
    assert not guided.reference(8).are_data
    made = guided.reference(256)
    plain = gaussian.reference(256)
    assert made.cond.labels is not None and plain.cond.labels is not None
    # At scale 2 the two classes are pushed apart.
    assert made.samples[made.cond.labels == 1].mean() > plain.samples[plain.cond.labels == 1].mean() + 0.01


def test_objectives_without_rules_are_refused_before_anything_loads() -> None:
    from distill.errors import UserError
    from distill.objectives import SiDA

    run = Run(name="probe", teacher="no such folder", data=Digits(), objective=SiDA(), images=1, batch_size=1)
    with pytest.raises(UserError, match="rules are known for sid, sim, fgm, diff_instruct, dmd2, got SiDA"):
        measure.open_subject(run, 1.0)


class OnlyEval(nn.Module):
    """A class that cannot be called in train mode."""

    def forward(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("no training")
        return x


def test_a_network_that_fails_in_train_mode_is_told_and_not_raised(gaussian: Subject) -> None:
    teacher = Denoiser(OnlyEval(), EDM(), "x0").eval()
    teacher.network.shape, teacher.network.classes = SHAPE, 2
    tried = replace(gaussian, teacher=teacher, target=teacher)
    assert network.train_mode_difference(tried) == math.inf and not teacher.training


@pytest.mark.parametrize(
    ("gain", "changes", "precision"),
    [(1.9, 0.005, "bfloat16"), (1.1, 0.005, "float32"), (1.9, 0.02, "float32"), (None, 0.005, "float32")],
)
def test_bfloat16_is_taken_where_it_gains_and_changes_little(
    gaussian: Subject, gain: float | None, changes: float, precision: str
) -> None:
    """Whatever it changes far below the times of the run, where this network would be 50 % off."""
    errors = [level._replace(bfloat16=changes) for level in levels.error_by_level(gaussian, gaussian.reference(COUNT))]
    errors[0] = errors[0]._replace(bfloat16=0.5)
    found = cast(Findings, SimpleNamespace(levels=errors, whole=STD**2, bfloat16_gain=gain))
    assert errors[0].nsr == 0.01 and math.log(0.01) < rules.times_of(SiD(), found)[0].mean - 2.5 * rules.STD
    chosen, reason = rules.precision(SiD(), found)
    assert chosen == precision
    assert ("0.53 of float32's time" in reason) == (precision == "bfloat16")


def test_the_gain_of_bfloat16_is_measured_where_the_time_allows(gaussian: Subject) -> None:
    gain = bfloat16_gain(gaussian)
    assert gain is not None and gain > 0
    assert bfloat16_gain(replace(gaussian, seconds=1e-9)) is None
