"""The kernels of a GPU follow the recipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tiny import experiment, recipe
from trainers.engine.world import choose_kernels


@pytest.fixture
def flags() -> Iterator[None]:
    """Put the flags of torch back."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, matmul.allow_tf32
    yield
    cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, matmul.allow_tf32 = before
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.mark.parametrize(("tf32", "deterministic"), [(False, True), (True, False)])
def test_kernels(tf32: bool, deterministic: bool, flags: None) -> None:
    """The flags of torch are those of the recipe, whatever they were."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    for _ in range(2):
        choose_kernels(experiment(recipe(Path("teacher"), tf32=tf32, deterministic=deterministic)))
        assert (cudnn.allow_tf32, matmul.allow_tf32) == (tf32, tf32)
        assert (cudnn.deterministic, cudnn.benchmark) == (deterministic, not deterministic)
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        tf32, deterministic = not tf32, not deterministic
