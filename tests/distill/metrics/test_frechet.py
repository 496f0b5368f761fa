"""The Frechet distance against closed forms, and moments that add up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill.errors import UserError
from distill.metrics import Moments, frechet_distance


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _rotation(size: int) -> Tensor:
    return torch.linalg.qr(_normal(size, size, seed=7)).Q


def _covariance(spectrum: Tensor, rotation: Tensor) -> Tensor:
    return rotation @ torch.diag(spectrum) @ rotation.T


def test_one_dimension_closed_form() -> None:
    a = Moments(torch.tensor([0.5]).double(), torch.tensor([[4.0]]).double(), 10)
    b = Moments(torch.tensor([-1.0]).double(), torch.tensor([[0.25]]).double(), 10)
    assert frechet_distance(a, b) == pytest.approx(1.5**2 + (2 - 0.5) ** 2, abs=1e-10)


def test_commuting_covariances_closed_form() -> None:
    rotation, mean = _rotation(6), _normal(2, 6, seed=1)
    first, second = torch.linspace(0.1, 3, 6).double(), torch.tensor([2, 0.5, 1, 4, 0.01, 0.3]).double()
    a = Moments(mean[0], _covariance(first, rotation), 10)
    b = Moments(mean[1], _covariance(second, rotation), 10)
    expected = (mean[0] - mean[1]).square().sum() + (first.sqrt() - second.sqrt()).square().sum()
    assert frechet_distance(a, b) == pytest.approx(float(expected), abs=1e-10)


def test_two_dimensions_without_commuting() -> None:
    """In two dimensions tr (A B)^(1/2) = (tr(A B) + 2 det(A B)^(1/2))^(1/2)."""
    first, second = torch.tensor([[2.0, 0.6], [0.6, 1.0]]).double(), torch.tensor([[0.5, -0.3], [-0.3, 3.0]]).double()
    product = first @ second
    assert not torch.allclose(product, product.T)
    overlap = (product.trace() + 2 * torch.det(product).sqrt()).sqrt()
    a, b = (Moments(torch.zeros(2).double(), covariance, 10) for covariance in (first, second))
    expected = float(first.trace() + second.trace() - 2 * overlap)
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-10)
    assert frechet_distance(b, a) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("shared", [0, 1, 3])
def test_singular_covariances(shared: int) -> None:
    """The sets span 3 and 4 of 40 directions: where only one varies, its trace remains and nothing overlaps."""
    rotation = _rotation(40)
    first, second = torch.zeros(40).double(), torch.zeros(40).double()
    first[:3], second[3 - shared : 7 - shared] = 2.0, 0.5
    a, b = (Moments(torch.zeros(40).double(), _covariance(s, rotation), 10) for s in (first, second))
    expected = (3 - shared) * 2.0 + (4 - shared) * 0.5 + shared * (2.0**0.5 - 0.5**0.5) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("count", [5, 500])
def test_identical_sets_are_at_zero(count: int) -> None:
    """5 samples in 64 dimensions leave 60 directions without variance."""
    features = 3 + _normal(count, 64)
    assert frechet_distance(Moments.of(features), Moments.of(features.flip(0))) < 1e-9


def test_point_masses_differ_by_their_means() -> None:
    a, b = torch.zeros(4, 3), torch.full((4, 3), 2.0)
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(12.0, abs=1e-12)


def test_moments_are_the_unbiased_ones() -> None:
    moments = Moments.of(torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 7.0]]))
    assert moments.mean.tolist() == [2.0, 3.0]
    assert moments.covariance.tolist() == [[4.0, 6.0], [6.0, 12.0]]
    assert moments.count == 3
    assert moments.covariance.dtype == torch.float64


@pytest.mark.parametrize("sizes", [[100, 200, 57], [1, 356], [1, 1, 355], [0, 357], [357, 0]])
def test_merging_equals_all_at_once(sizes: list[int]) -> None:
    features = 5 + _normal(357, 8) * torch.linspace(0.1, 4, 8).double()
    merged, *rest = [Moments.of(part) for part in features.split(sizes)]
    for part in rest:
        merged = merged.merge(part)
    whole = Moments.of(features)
    assert merged.count == whole.count == 357
    torch.testing.assert_close(merged.mean, whole.mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(merged.covariance, whole.covariance, rtol=0, atol=1e-12)


def test_merging_nothing_gives_nothing() -> None:
    nothing = Moments.of(torch.zeros(0, 3))
    assert nothing.merge(nothing).count == 0


def test_float32_statistics_with_rounding_are_accepted() -> None:
    a = Moments(torch.zeros(2), torch.tensor([[1.0, 0.0], [0.0, -1e-7]]), 10)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_float32_statistics_are_computed_with_in_float64() -> None:
    mean, covariance = torch.tensor([0.5, -1.0]), torch.tensor([[2.0, 0.6], [0.6, 1.0]])
    single, double = Moments(mean, covariance, 10), Moments(mean.double(), covariance.double(), 10)
    other = Moments.of(_normal(10, 2))
    assert frechet_distance(single, other) == frechet_distance(double, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": torch.full((3,), torch.nan)}, "NaN, infinity or numbers beyond float32"),
        ({"covariance": torch.full((3, 3), torch.inf)}, "NaN, infinity or numbers beyond float32"),
        ({"covariance": 1e300 * torch.eye(3).double()}, "NaN, infinity or numbers beyond float32"),
        ({"covariance": torch.tensor([[1.0, 0.5, 0], [0, 1, 0], [0, 0, 1]])}, "a covariance that is not symmetric"),
        ({"covariance": torch.diag(torch.tensor([1.0, 1.0, -0.01]))}, "a covariance with eigenvalues below 0"),
        ({"covariance": torch.ones(3, 3) - 0.9 * torch.eye(3)}, "a covariance with eigenvalues below 0"),
        ({"covariance": -torch.eye(3)}, "a covariance with eigenvalues below 0"),
    ],
)
def test_moments_of_no_features_are_refused(change: dict[str, torch.Tensor], message: str) -> None:
    good = {"mean": torch.zeros(3), "covariance": torch.eye(3)}
    with pytest.raises(UserError, match=f"^moments: {message}"):
        Moments(**{**good, **change}, count=2).check()


def test_moments_of_features_pass() -> None:
    """Those of few features, of equal ones and of float32, whose covariances are singular or are rounded."""
    for features in (_normal(50, 3), _normal(2, 30), torch.zeros(4, 3), torch.ones(4, 3), 1e15 * _normal(9, 3)):
        moments = Moments.of(features)
        moments.check()
        Moments(moments.mean.float(), moments.covariance.float(), moments.count).check()
    Moments(torch.zeros(2), torch.tensor([[1.0, 1e-6], [0.0, -1e-7]]), 10).check()


def test_mistakes_are_refused() -> None:
    good = Moments.of(_normal(10, 3))
    with pytest.raises(UserError, match="3 and 4 dimensions given"):
        frechet_distance(good, Moments.of(_normal(10, 4)))
    with pytest.raises(UserError, match="3 and 4 dimensions given"):
        good.merge(Moments.of(_normal(10, 4)))
    with pytest.raises(UserError, match="a set of 1 samples given, expected at least 2"):
        frechet_distance(good, Moments.of(_normal(1, 3)))
    with pytest.raises(UserError, match="NaN or infinity"):
        frechet_distance(good, Moments.of(torch.full((4, 3), torch.nan)))
    with pytest.raises(UserError, match="eigenvalue -1 given"):
        frechet_distance(good, Moments(torch.zeros(3), torch.diag(torch.tensor([1.0, 1.0, -1.0])), 5))
    with pytest.raises(UserError, match=r"\[10, 3, 1\] given, expected \[N, D\]"):
        Moments.of(_normal(10, 3, 1))
    with pytest.raises(UserError, match=r"mean \[3\] and covariance \[3, 2\] given"):
        Moments(torch.zeros(3), torch.zeros(3, 2), 5)
