"""Distances of two images: their values, means that do not grow with the resolution, and the classifier's features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from distill import EDM, Denoiser, UserError
from distill.metrics import Classifier
from distill.objectives.dmd import DMD
from distill.objectives.hipa import HiPA
from distill.perceptual import L1, MSE, PERCEPTUALS, Features, Perceptual, PseudoHuberDistance
from tests.tiny import tiny_denoiser


@pytest.mark.parametrize(
    ("perceptual", "value"),
    [(MSE(), 2.5), (L1(), 1.5), (PseudoHuberDistance(c=1.0), 3.5**0.5 - 1), (PseudoHuberDistance(), 2.5**0.5)],
)
@pytest.mark.parametrize("size", [2, 16])
def test_values(perceptual: Perceptual, value: float, size: int) -> None:
    """A difference of 2 in one half and -1 in the other: mean square 2.5, mean 1.5, at any resolution."""
    target = torch.rand(3, 1, size, size)
    made = target + torch.tensor([2.0, -1.0]).repeat(size // 2)
    distance = perceptual.distance(made, target, perceptual.network())
    assert distance.tolist() == pytest.approx([value] * 3, abs=1e-3)
    assert perceptual.distance(target, target, perceptual.network()).tolist() == [0.0] * 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    Classifier((1, 8, 8), 10, width=16).save(tmp_path / "c")
    return tmp_path / "c"


def test_features(folder: Path) -> None:
    classifier, perceptual = Classifier.load(folder), Features(str(folder))
    made, target = torch.rand(4, 1, 8, 8).requires_grad_(), torch.rand(4, 1, 8, 8)
    distance = perceptual.distance(made, target, perceptual.network())
    expected = ((classifier.features(made) - classifier.features(target)) ** 2).sum(1) / 16
    assert distance.shape == (4,) and torch.allclose(distance, expected) and float(distance.min()) > 0
    distance.sum().backward()
    assert made.grad is not None and bool((made.grad != 0).any())


@pytest.mark.parametrize("objective", [DMD, HiPA])
def test_a_classifier_of_other_images_is_refused(objective: type[DMD] | type[HiPA], folder: Path) -> None:
    ours = objective(perceptual=Features(str(folder)))
    ours.check(tiny_denoiser())
    ours.check(Denoiser(nn.Identity(), EDM(), "x0"))  # a network that does not say what it makes
    message = rf"^perceptual: the classifier '{folder}' sees \(1, 8, 8\), the teacher makes \(1, 16, 16\)$"
    with pytest.raises(UserError, match=message):
        ours.check(tiny_denoiser(sample_size=16))
    missing = objective(perceptual=Features(str(folder / "none")))
    with pytest.raises(UserError, match=r"^classifier: no folder "):
        missing.check(tiny_denoiser())
    assert isinstance(ours.load_frozen()["perceptual"], Classifier)


def test_names() -> None:
    assert set(PERCEPTUALS) == {"mse", "l1", "pseudo_huber", "classifier"}
    with pytest.raises(UserError, match=r"^c: must be positive, got 0"):
        PseudoHuberDistance(c=0.0)
