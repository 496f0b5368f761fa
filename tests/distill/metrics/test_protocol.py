"""The digits protocol: deterministic, ordered by how bad the images are, and clear about mistakes."""

from __future__ import annotations

import time

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold, cross_val_score
from torch import Tensor

from distill.errors import UserError
from distill.metrics import Components, Moments, Protocol, frechet_distance

Digits = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def digits() -> Digits:
    """Images [1797, 1, 8, 8] float32 in [-1, 1] and labels [1797]."""
    data = load_digits()
    return torch.from_numpy(data.images).float()[:, None] / 8 - 1, torch.from_numpy(data.target)


@pytest.fixture(scope="module")
def protocol(digits: Digits) -> Protocol:
    return Protocol.fit("digits", *digits)


@pytest.fixture(scope="module")
def components(protocol: Protocol) -> Components:
    assert isinstance(protocol.extractor, Components)
    return protocol.extractor


def _blur(images: Tensor, side: float = 0.1) -> Tensor:
    row = torch.tensor([side, 1 - 2 * side, side])
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    return torch.nn.functional.conv2d(padded, torch.outer(row, row)[None, None])


def _noise(images: Tensor, scale: float) -> Tensor:
    return images + scale * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


def test_the_name_says_what_defines_the_number(protocol: Protocol) -> None:
    assert str(protocol) == protocol.name == "pca48(digits, 1797 real)"


def test_two_fits_are_bit_equal(digits: Digits, protocol: Protocol) -> None:
    images, labels = digits
    again = Protocol.fit("digits", images.clone(), labels.clone())
    defect = _noise(images, 0.3)
    assert torch.equal(again.real.moments.covariance, protocol.real.moments.covariance)
    assert again.halves == protocol.halves
    assert again.report(defect, labels) == protocol.report(defect, labels)


def test_components_are_orthonormal_ordered_and_of_fixed_sign(
    digits: Digits, protocol: Protocol, components: Components
) -> None:
    """The covariance of the real features is diagonal with falling variances: unwhitened principal components."""
    identity = torch.eye(48, dtype=torch.float64)
    torch.testing.assert_close(components.basis.T @ components.basis, identity, rtol=0, atol=1e-12)
    variance = protocol.real.moments.covariance.diag()
    torch.testing.assert_close(protocol.real.moments.covariance, torch.diag(variance), rtol=0, atol=1e-12)
    assert bool((variance.diff() < 0).all())
    held = variance.sum() / Moments.of(digits[0].flatten(1)).covariance.trace()
    assert float(held) == pytest.approx(0.9986, abs=1e-4)
    largest = components.basis.abs().argmax(dim=0)
    assert bool((components.basis[largest, torch.arange(48)] > 0).all())


def test_the_floor_is_the_mean_over_ten_fixed_splits(digits: Digits, protocol: Protocol) -> None:
    features, distances = protocol.features(digits[0]), []
    for seed in range(10):
        order = torch.randperm(1797, generator=torch.Generator().manual_seed(seed))
        distances.append(frechet_distance(Moments.of(features[order[:899]]), Moments.of(features[order[899:]])))
    assert protocol.halves == pytest.approx(sum(distances) / 10, rel=1e-9)
    assert protocol.halves == pytest.approx(0.2781, abs=1e-4)


def test_defects_are_ordered(digits: Digits, protocol: Protocol) -> None:
    images, labels = digits
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    half = protocol.distance(images[order[:899]])
    slight, blurred = protocol.distance(_blur(images, 0.1)), protocol.distance(_blur(images, 0.25))
    noise = protocol.distance(_noise(torch.zeros_like(images), 1.0))
    assert half < protocol.halves < slight < blurred < noise
    assert protocol.distance(_noise(images, 0.1)) < protocol.distance(_noise(images, 0.3))
    assert half < protocol.distance(images[labels != 8]) < protocol.distance(images[labels < 5])


def test_real_images_are_at_zero_and_moments_do_as_well_as_images(digits: Digits, protocol: Protocol) -> None:
    images = _blur(digits[0])
    assert protocol.distance(digits[0]) < 1e-9
    parts = [Moments.of(protocol.features(part)) for part in images.split(700)]
    streamed = protocol.distance(parts[0].merge(parts[1]).merge(parts[2]))
    assert streamed == pytest.approx(protocol.distance(images), abs=1e-10)


def test_images_are_clamped_and_not_quantised(digits: Digits, protocol: Protocol) -> None:
    images = _noise(digits[0], 0.3)
    features = protocol.features(images)
    assert features.shape == (1797, 48)
    assert features.dtype == torch.float64
    assert torch.equal(features, protocol.features(images.clamp(-1, 1)))
    assert not torch.equal(features, protocol.features((images * 8).round() / 8))


def test_agreement_of_real_shuffled_and_wrong_labels(digits: Digits, protocol: Protocol) -> None:
    images, labels = digits
    shuffled = labels[torch.randperm(1797, generator=torch.Generator().manual_seed(0))]
    assert protocol.agreement(images, labels) > 0.99
    assert protocol.agreement(images, shuffled) == pytest.approx(0.1, abs=0.03)
    assert protocol.agreement(images, (labels + 1) % 10) < 0.01


def test_the_classifier_is_right_on_held_out_digits(digits: Digits, components: Components) -> None:
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    right = cross_val_score(components.classifier, digits[0].flatten(1).double().numpy(), digits[1].numpy(), cv=folds)
    assert right.mean() >= 0.985


def test_report(digits: Digits, protocol: Protocol) -> None:
    images, labels = _blur(digits[0])[:500], digits[1][:500]
    numbers = {"frechet": protocol.distance(images), "protocol": "pca48(digits, 1797 real)", "samples": 500}
    assert protocol.report(images) == numbers
    assert protocol.report(images, labels) == {**numbers, "label_agreement": protocol.agreement(images, labels)}


def test_protocol_without_labels(digits: Digits, protocol: Protocol) -> None:
    images, labels = digits
    unlabelled = Protocol.fit("digits", images)
    assert unlabelled.halves == protocol.halves
    assert "label_agreement" not in unlabelled.report(images)
    with pytest.raises(UserError, match="fitted without labels"):
        unlabelled.agreement(images, labels)


def test_ten_thousand_images_are_cheap(digits: Digits, protocol: Protocol) -> None:
    images = digits[0].repeat(6, 1, 1, 1)[:10_000]
    start = time.perf_counter()
    protocol.distance(images)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([5, 8, 8], r"\[5, 8, 8\] given, expected \[N, 1, 8, 8\]"),
        ([5, 3, 8, 8], r"\[5, 3, 8, 8\] given, expected \[N, 1, 8, 8\]"),
        ([5, 1, 4, 16], r"\[5, 1, 4, 16\] given, expected \[N, 1, 8, 8\]"),
        ([1, 1, 8, 8], "a set of 1 samples given, expected at least 2"),
    ],
)
def test_wrong_shapes_are_refused(protocol: Protocol, shape: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        protocol.distance(torch.zeros(shape))


def test_wrong_values_and_labels_are_refused(digits: Digits, protocol: Protocol) -> None:
    images, labels = digits[0][:4].clone(), digits[1][:4]
    with pytest.raises(UserError, match=r"torch.uint8 given, expected floating point in \[-1, 1\]"):
        protocol.features(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(UserError, match="3 and 48 dimensions given"):
        protocol.distance(Moments.of(torch.zeros(4, 3)))
    with pytest.raises(UserError, match=r"\[3\] given, expected integers \[4\]"):
        protocol.agreement(images, labels[:3])
    with pytest.raises(UserError, match=r"torch.float32 \[4\] given, expected integers \[4\]"):
        protocol.agreement(images, labels.float())
    with pytest.raises(UserError, match=r"labels: 10 given, expected one of the real labels 0, 1, .* 8, 9$"):
        protocol.agreement(images, torch.tensor([0, 1, 10, 2]))
    with pytest.raises(UserError, match="0 images given"):
        protocol.agreement(images[:0], labels[:0])
    images[2, 0, 3, 3], images[3, 0, 0, 0] = torch.nan, torch.inf
    with pytest.raises(UserError, match="2 of 4 hold NaN or infinity"):
        protocol.report(images)


def test_impossible_fits_are_refused(digits: Digits) -> None:
    images, labels = digits
    with pytest.raises(UserError, match=r"\[1797, 8\] given, expected \[N, C, \*spatial\]"):
        Protocol.fit("digits", images[:, 0, 0])
    with pytest.raises(UserError, match=r"values in \[0, 16\] given, expected them within \[-1, 1\]"):
        Protocol.fit("digits", images * 8 + 8)
    with pytest.raises(UserError, match="3 given, expected at least 4"):
        Protocol.fit("digits", images[:3])
    with pytest.raises(UserError, match="components: 62 given, expected 1 to 61, the directions"):
        Protocol.fit("digits", images, components=62)
    with pytest.raises(UserError, match="components: 0 given"):
        Protocol.fit("digits", images, components=0)
    with pytest.raises(UserError, match=r"\[5\] given, expected integers \[1797\]"):
        Protocol.fit("digits", images, labels[:5])
    with pytest.raises(UserError, match="1 class given"):
        Protocol.fit("digits", images, torch.zeros_like(labels))
