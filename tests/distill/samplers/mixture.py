"""A mixture whose probability flow has no closed form, with its flow solved to far below the errors of the tests."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from distill import EDM, Path
from distill.samplers import Heun, Sampler
from distill.teachers import GaussianMixture

Z = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LOW = {"low": 1e-4, "spacing": "log_snr"}  # so that the last step, from `low` to 0, is below the errors of the tests


def mixture(path: Path, dtype: torch.dtype = torch.float64) -> GaussianMixture:
    """Return two Gaussians in 2-D."""
    means = torch.tensor([[0.4, 0.4], [-0.6, 0.2]], dtype=dtype)
    return GaussianMixture(path, means, torch.tensor([0.5, 0.3], dtype=dtype))


@cache
def exact() -> Tensor:
    """Return the end of the probability flow from 80 Z, the same on every continuous path."""
    return Heun(evaluations=20_001, **LOW).sample(mixture(EDM()), Z)


def error(sampler: Sampler) -> float:
    """Return the root mean square error of a sampler's samples."""
    return float((sampler.sample(mixture(EDM()), Z) - exact()).square().mean().sqrt())


def slope(kind: type[Sampler], few: int, many: int, **settings: Any) -> float:
    """Return the power of 1 / evaluations with which the error of a sampler falls between two numbers of them."""
    first, last = (error(kind(evaluations=count, **{**LOW, **settings})) for count in (few, many))
    return math.log(first / last) / math.log(many / few)
