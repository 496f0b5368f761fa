"""The classifier's reward is log p(label | x), on the images and labels its own folder was trained for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from distill import EDM, Denoiser, UserError
from distill.metrics import Classifier
from distill.networks.network import Network
from distill.rewards import ClassifierReward

X, LABELS = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1, torch.tensor([0, 2, 1, 2, 0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    Classifier((1, 8, 8), 3, width=16, data="toy").save(tmp_path / "classifier")
    return tmp_path / "classifier"


def teacher(shape: tuple[int, ...] = (1, 8, 8), classes: int = 3, latents: bool = False) -> Denoiser:
    network = Network()
    network.shape, network.classes = shape, classes
    return Denoiser(network, EDM(), "x0", latents=latents)


def test_it_is_the_log_likelihood(folder: Path) -> None:
    reward, x = ClassifierReward(classifier=str(folder)).load(), X.clone().requires_grad_()
    values = reward(x, LABELS)
    assert torch.allclose(values, -cross_entropy(Classifier.load(folder)(X), LABELS, reduction="none"))
    assert values.shape == (5,) and bool((values < 0).all())
    (gradient,) = torch.autograd.grad(values.sum(), x)
    better = reward((X + 1e-2 * gradient), LABELS)
    assert bool((better > values).all())
    assert not any(parameter.requires_grad for parameter in reward.parameters())


def test_what_it_cannot_judge(folder: Path) -> None:
    reward = ClassifierReward(classifier=str(folder))
    reward.check(teacher())
    for wrong, line in (
        (teacher(shape=(3, 8, 8)), f"reward.classifier: '{folder}' has shape (1, 8, 8), the teacher (3, 8, 8)"),
        (teacher(classes=0), f"reward.classifier: '{folder}' has classes 3, the teacher 0"),
        (
            teacher(latents=True),
            "reward: log_likelihood judges pixels, the teacher's samples are latents and have no decoder",
        ),
    ):
        with pytest.raises(UserError) as error:
            reward.check(wrong)
        assert str(error.value) == line
    with pytest.raises(UserError, match=r"^classifier: no folder '.*nowhere'; `distill classifier RECIPE` trains one$"):
        ClassifierReward(classifier="nowhere").check(teacher())
