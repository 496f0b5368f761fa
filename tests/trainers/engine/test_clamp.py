"""The clamp of the elements of a gradient, after its norm was taken."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from distill import UserError
from trainers.engine.player import Player
from trainers.recipe.run import Optimizer


def moved(gradient: list[float], most: float | None) -> list[float]:
    """The step of plain gradient descent at rate 1 on three weights."""
    network = nn.Linear(3, 1, bias=False)
    before = network.weight.detach().clone()
    settings = Optimizer(name="sgd", lr=1.0, max_grad_element=most)
    player = Player("fake", network, settings, Accelerator(cpu=True))
    with player.training():
        network.weight.grad = torch.tensor([gradient])
        player.step(network.weight.grad.norm(), 1.0)
    return (before - network.weight.detach()).flatten().tolist()


def test_elements_beyond_the_bound_are_clamped() -> None:
    assert moved([3.0, -0.25, -8.0], 1.0) == pytest.approx([1.0, -0.25, -1.0], abs=1e-6)
    assert moved([3.0, -0.25, -8.0], None) == pytest.approx([3.0, -0.25, -8.0], abs=1e-6)


def test_a_gradient_that_is_not_finite_is_skipped_all_the_same() -> None:
    assert moved([float("inf"), 0.5, 0.5], 1.0) == [0.0, 0.0, 0.0]


def test_a_bound_is_positive() -> None:
    with pytest.raises(UserError, match=r"^max_grad_element: must be positive, got 0$"):
        Optimizer(max_grad_element=0)
