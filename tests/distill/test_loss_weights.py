"""A denoising weight makes |D - x0|^2 the plain squared error of the network output it is named after; a generator's
weight is the formula it is named after."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from distill import EDM, VP, DiscreteVP, Flow, Path, UserError
from distill.loss_weights import GeneratorWeight, NamedWeight, WeightTable, denoising_weight, generator_weight
from distill.prediction import Kind, from_x0

NSR = torch.tensor([0.002, 0.1, 0.5, 2.0, 14.0], dtype=torch.float64)

NAMED: list[tuple[NamedWeight, Kind, Path]] = [
    ("eps", "eps", EDM()),
    ("eps", "eps", VP()),
    ("eps", "eps", Flow()),
    ("v", "v", VP()),
    ("v", "v", DiscreteVP()),
    ("velocity", "velocity", Flow()),
    ("edm", "edm", EDM()),
    ("edm", "edm", VP()),
    ("x0", "x0", EDM()),
]


@pytest.mark.parametrize(("weight", "kind", "path"), NAMED, ids=lambda value: str(value))
def test_weight_is_the_plain_error_of_its_output(weight: NamedWeight, kind: Kind, path: Path) -> None:
    t = path.time(NSR)
    x_t, x0, other = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def output(estimate: Tensor) -> Tensor:
        return from_x0(kind, path, estimate, x_t, t, sigma_data=0.7)

    plain = ((output(other) - output(x0)) ** 2).sum(1)
    ours = denoising_weight(weight, path.nsr(t), sigma_data=0.7) * ((other - x0) ** 2).sum(1)
    assert torch.allclose(ours, plain, rtol=1e-9)


def test_edm_weight_as_published() -> None:
    assert torch.allclose(denoising_weight("edm", NSR), (NSR**2 + 0.25) / (NSR * 0.5) ** 2, rtol=1e-12)


@pytest.mark.parametrize("weight", get_args(NamedWeight))
def test_weights_are_positive(weight: NamedWeight) -> None:
    assert bool((denoising_weight(weight, NSR) > 0).all())


def test_unknown_weight_is_refused() -> None:
    with pytest.raises(UserError, match=r"^weight: must be one of edm, eps, v, velocity, x0, got 'snr'$"):
        denoising_weight("snr", NSR)  # type: ignore[arg-type]


def test_generator_weights_are_what_their_names_say() -> None:
    """On a rectified flow, whose alpha is 1 - t and whose sigma is t."""
    t = torch.tensor([0.01, 0.3, 0.5, 0.99], dtype=torch.float64)
    snr = ((1 - t) / t) ** 2
    named = {"none": torch.ones_like(t), "1-t": 1 - t, "(1-t)^2": (1 - t) ** 2, "1/t": 1 / t}
    named |= {"snr": snr, "snr/(1+snr)": snr / (1 + snr)}
    assert set(named) == set(get_args(GeneratorWeight))
    for name in get_args(GeneratorWeight):
        assert torch.allclose(generator_weight(name, Flow().nsr(t)), named[name], rtol=1e-12), name


def test_unknown_generator_weight_is_refused() -> None:
    with pytest.raises(UserError, match=r"^weight: must be one of none, 1-t, \(1-t\)\^2, 1/t, snr, .*, got 'l2'$"):
        generator_weight("l2", NSR)  # type: ignore[arg-type]


def test_a_table_is_a_power_law_between_its_levels_and_constant_beyond_them() -> None:
    table = WeightTable((0.1, 1.0, 10.0), (400.0, 4.0, 1.0))
    at = torch.tensor([0.01, 0.1, 0.2, 1.0, 10**0.5, 10.0, 80.0], dtype=torch.float64)
    expected = torch.tensor([400.0, 400.0, 100.0, 4.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    assert torch.allclose(denoising_weight(table, at), expected, rtol=1e-12)
    assert denoising_weight(table, at.float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("nsr", "weight", "message"),
    [
        ((1.0,), (1.0,), "two lists of the same length"),
        ((1.0, 2.0), (1.0,), "two lists of the same length"),
        ((2.0, 1.0), (1.0, 1.0), "nsr: must be positive and rising"),
        ((0.0, 1.0), (1.0, 1.0), "nsr: must be positive and rising"),
        ((1.0, 2.0), (1.0, 0.0), "weight: must be positive"),
    ],
)
def test_a_table_that_is_none_is_refused(nsr: tuple[float, ...], weight: tuple[float, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        WeightTable(nsr, weight)
