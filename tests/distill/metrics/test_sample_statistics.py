"""Statistics of samples against closed forms and independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, pdist
from scipy.stats import energy_distance as energy_distance_1d

from distill.errors import UserError
from distill.metrics.sample_statistics import (
    channel_moments,
    compare_samples,
    diversity,
    energy_distance,
    power_spectrum,
)

SHAPES = [(2, 8, 8), (1, 16), (3, 5, 7), (1, 4, 6, 8)]


def normal(count: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def test_moments_are_those_of_each_channel() -> None:
    x = normal(6, 3, 4, 5)
    mean, std = channel_moments(x)
    assert np.allclose(mean, x.numpy().mean((0, 2, 3)), atol=1e-6)
    assert np.allclose(std, x.numpy().std((0, 2, 3)), atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_powers_add_up_to_the_variance(shape: tuple[int, ...]) -> None:
    x = normal(4, *shape) + 3.0
    assert float(power_spectrum(x).power.sum()) == pytest.approx(float(x.double().flatten(2).var(2, False).mean()))


@pytest.mark.parametrize(("waves", "band"), [(1, 2), (2, 1), (3, 0), (4, 0)])
def test_a_wave_is_in_its_octave_alone(waves: int, band: int) -> None:
    """cos(2 pi k i / 8) has the power 1/2, or 1 at the highest frequency, where it is never 0."""
    wave = torch.cos(2 * math.pi * waves * torch.arange(8) / 8).expand(2, 1, 8, 8)
    power, low = power_spectrum(wave)
    assert low == [0.5, 0.25, 0.125]
    assert power.tolist() == pytest.approx([(0.5 if waves < 4 else 1.0) * (one == band) for one in range(3)], abs=1e-6)


def test_samples_of_one_element_have_no_band() -> None:
    for shape in ((3,), (3, 1, 1)):
        assert len(power_spectrum(normal(4, *shape)).power) == 0


def test_diversity_is_the_mean_of_the_conditions() -> None:
    x, groups = normal(9, 2, 3, 3), torch.tensor([0, 1, 0, 1, 0, 7, 1, 1, 0])
    rows = x.flatten(1).double().numpy()
    assert diversity(x) == pytest.approx(pdist(rows).mean())
    wanted = np.mean([pdist(rows[groups == one]).mean() for one in (0, 1)])  # condition 7 has one sample
    assert diversity(x, groups) == pytest.approx(wanted)


def test_normal_samples_have_their_known_diversity() -> None:
    """|X - X'| of unit normals in 2 dimensions is Rayleigh's with scale sqrt(2): its mean is sqrt(pi)."""
    assert diversity(normal(1500, 2)) == pytest.approx(math.sqrt(math.pi), rel=0.02)


def test_energy_distance_of_two_points_is_known() -> None:
    """Every sample of a set at one point: 2 |a - b|."""
    a, b = torch.zeros(4, 1, 2), torch.tensor([3.0, 4.0]).expand(4, 1, 2)
    assert energy_distance(a, b) == pytest.approx(10.0)
    assert energy_distance(a, a) == 0


def test_energy_distance_agrees_with_scipy() -> None:
    a, b = normal(900, 1), 1.5 * normal(900, 1, seed=1) + 0.7
    wanted = energy_distance_1d(a.flatten().numpy(), b.flatten().numpy()) ** 2  # of the empirical laws, hence biased
    assert energy_distance(a, b) == pytest.approx(wanted, abs=0.01)
    rows, others = a[:20].double().numpy(), b[:20].double().numpy()
    cross = cdist(rows, others)[~np.eye(20, dtype=bool)].mean()
    assert energy_distance(a[:20], b[:20]) == pytest.approx(2 * cross - pdist(rows).mean() - pdist(others).mean())


def test_energy_distance_looks_within_conditions() -> None:
    """Two sets that swap their conditions are equal as a whole, and far apart within each."""
    groups = torch.arange(200) % 2
    a = normal(200, 1) + 10.0 * groups[:, None]
    b = normal(200, 1, seed=1) + 10.0 * (1 - groups[:, None])
    assert energy_distance(a, b, groups) == pytest.approx(2 * 10 - 4 / math.sqrt(math.pi), rel=0.03)
    assert abs(energy_distance(a, b)) < 0.2


def test_energy_distance_has_no_bias_by_common_noise() -> None:
    """The same samples, up to order, as those of another noise: 0 in the mean over many small sets."""
    common = [energy_distance(x, x + 1e-6) for x in (normal(4, 3, seed=seed) for seed in range(300))]
    assert np.abs(common).max() < 1e-5
    other = [energy_distance(normal(4, 3, seed=seed), normal(4, 3, seed=1000 + seed)) for seed in range(300)]
    assert abs(np.mean(other)) < 4 * np.std(other) / math.sqrt(300)


def test_one_sample_of_each_condition_is_refused() -> None:
    with pytest.raises(UserError, match="samples: 3 given, expected two of one condition"):
        diversity(normal(3, 1), torch.arange(3))


def test_a_comparison_finds_each_change() -> None:
    """Of channel 1 doubled and channel 0 shifted by a teacher's standard deviation each number is known."""
    teacher = normal(50, 2, 8, 8)
    same = compare_samples(teacher, teacher)
    assert same["distance"] == 0 and same["mean"] == 0 and same["spectrum"] == 0
    assert same["diversity"] == same["contrast"] == 1
    _, std = channel_moments(teacher)
    changed = torch.stack([teacher[:, 0] + std[0], 2 * teacher[:, 1]], 1)
    found = compare_samples(changed.float(), teacher)
    assert found["contrast"] == found["contrast/1"] == pytest.approx(2, rel=1e-5)
    assert found["contrast/0"] == pytest.approx(1, rel=1e-5)
    assert found["mean"] == found["mean/0"] == pytest.approx(1, rel=1e-5)
    # Half of the power of each band is that of channel 1, which grew by 4: (1 + 4) / 2 up to the noise.
    assert found["spectrum"] == pytest.approx(math.log(2.5), abs=0.1)
    assert set(found) > {"spectrum/0.5-1", "spectrum/0.25-0.5", "spectrum/0.125-0.25"}
    rows, others = changed.flatten(1).numpy(), teacher.flatten(1).numpy()
    assert found["diversity"] == pytest.approx(pdist(rows).mean() / pdist(others).mean(), rel=1e-5)
    assert found["distance"] == pytest.approx(energy_distance(changed, teacher) / diversity(teacher), rel=1e-5)


def test_a_blur_lowers_the_highest_band() -> None:
    teacher = normal(64, 1, 8, 8)
    blurred = (teacher + teacher.roll(1, -1)) / 2
    found = compare_samples(blurred, teacher)
    assert found["spectrum"] == found["spectrum/0.5-1"] < -0.7


def test_a_constant_teacher_gives_finite_numbers() -> None:
    teacher = torch.cat([torch.zeros(4, 1, 4, 4), normal(4, 1, 4, 4)], 1)
    assert all(math.isfinite(value) for value in compare_samples(torch.zeros_like(teacher), teacher).values())
