"""A mixture whose probability flow has no closed form, with its flow solved to far below the errors of the tests."""

from __future__ import annotations

import math
import tempfile
from functools import cache
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from distill import EDM, Path
from distill.samplers import SAMPLERS, Heun, ModelStatistics, Sampler, measure_statistics
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


FILES = tempfile.TemporaryDirectory()  # of statistics, until the process ends


@cache
def statistics(path: Path, low: float = 1e-4, count: int = 256) -> ModelStatistics:
    """Return the statistics of the mixture on a path."""
    z = torch.randn(count, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return measure_statistics(mixture(path), z, low=low, batch=count)


@cache
def statistics_file(path: Path) -> str:
    """Return a file with the statistics of the mixture on a path."""
    file = FilePath(FILES.name) / f"{len(list(FilePath(FILES.name).iterdir()))}.safetensors"
    statistics(path).save(file)
    return str(file)


def named(name: str, path: Path, **settings: Any) -> Sampler:
    """Return a sampler by its name, which may need the statistics of the mixture on a path."""
    further = {"statistics": statistics_file(path)} if name == "dpm_v3" else {}
    return SAMPLERS[name](**settings, **further)


def error(sampler: Sampler) -> float:
    """Return the root mean square error of a sampler's samples."""
    return float((sampler.sample(mixture(EDM()), Z) - exact()).square().mean().sqrt())


def slope(kind: type[Sampler], few: int, many: int, **settings: Any) -> float:
    """Return the power of 1 / evaluations with which the error of a sampler falls between two numbers of them."""
    first, last = (error(kind(evaluations=count, **{**LOW, **settings})) for count in (few, many))
    return math.log(first / last) / math.log(many / few)
