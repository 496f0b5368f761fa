"""Power-function averages against the published program, closed forms and a brute-force fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from distill.errors import UserError
from distill.power_ema import WIDEST, PowerProfile, posthoc

GOLDEN = load_file(Path(__file__).parents[1] / "golden/edm2_power_ema.safetensors")


def widths(name: str) -> list[float]:
    return [round(std, 6) for std in GOLDEN[name].tolist()]  # stored as float32, used as 0.05


def test_averages_are_the_published_ones() -> None:
    weights, batch_size = GOLDEN["weights"], int(GOLDEN["batch_size"])
    for column, std in enumerate(widths("stds")):
        profile, average = PowerProfile(std), weights[0]
        for update, expected in enumerate(GOLDEN["ema"][:, column]):
            new = weights[update + 1]
            average = new + profile.beta(update * batch_size, batch_size) * (average - new)
            assert torch.allclose(average, expected, rtol=0, atol=1e-10)


def test_coefficients_are_the_published_ones() -> None:
    ends, stds = GOLDEN["in_ofs"].tolist(), widths("in_std")
    for column, (end, std) in enumerate(zip(GOLDEN["out_ofs"].tolist(), widths("out_std"), strict=True)):
        x, _ = posthoc(ends, stds, end, std)
        assert torch.allclose(x, GOLDEN["coefficients"][:, column], rtol=0, atol=1e-10)


@pytest.mark.parametrize("gamma", [1e-3, 0.5, 1.0, 6.94, 16.97, 1e3])
def test_gamma_has_the_width_of_its_profile(gamma: float) -> None:
    """The width from the moments of p on [0, 1], gamma from the width."""
    mean, square = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)
    assert PowerProfile((square - mean**2) ** 0.5).gamma == pytest.approx(gamma, rel=1e-9)


def test_an_update_moves_by_the_profile_of_its_images() -> None:
    """After n updates, update i weighs the integral of p over its own images: nothing is lost to the batches."""
    profile, batch_size, n = PowerProfile(0.1), 8, 25
    weights = torch.eye(n, dtype=torch.float64)
    average = torch.zeros(n, dtype=torch.float64)
    for i in range(n):
        average = weights[i] + profile.beta(i * batch_size, batch_size) * (average - weights[i])
    edges = (torch.arange(n + 1, dtype=torch.float64) / n) ** (profile.gamma + 1)
    assert torch.allclose(average, edges.diff(), rtol=0, atol=1e-14)


def curve(end: float, std: float, tau: Tensor) -> Tensor:
    gamma = PowerProfile(std).gamma
    return torch.where(tau <= end, (gamma + 1) * (tau / end) ** gamma / end, 0)


@pytest.mark.parametrize(("end", "std"), [(96, 0.07), (64, 0.15), (96, 0.25)])
def test_the_fit_is_that_of_sampled_profiles(end: float, std: float) -> None:
    """Least squares on 96,000 points in place of integrals: the same coefficients, the same rest."""
    ends, stds = [32, 32, 64, 64, 96, 96], [0.05, 0.1] * 3
    tau = (torch.arange(96_000, dtype=torch.float64) + 0.5) / 1000
    basis, wanted = torch.stack([curve(*one, tau) for one in zip(ends, stds, strict=True)], 1), curve(end, std, tau)
    expected = torch.linalg.lstsq(basis, wanted[:, None]).solution[:, 0]
    expected /= expected.sum()
    x, left = posthoc(ends, stds, end, std)
    assert torch.allclose(x, expected, atol=1e-4)
    assert left == pytest.approx(float((basis @ expected - wanted).norm() / wanted.norm()), rel=1e-4)


def test_a_width_that_is_there_is_itself() -> None:
    x, left = posthoc([8, 8, 16, 16], [0.05, 0.1, 0.05, 0.1], 16, 0.1)
    assert torch.allclose(x, torch.tensor([0.0, 0, 0, 1], dtype=torch.float64), atol=1e-12) and left < 1e-7


def test_many_snapshots_of_near_widths_do_not_blow_up() -> None:
    """Their profiles are parallel to rounding; a plain solve gives coefficients of thousands here."""
    ends = [i for i in range(1, 401) for _ in range(3)]
    x, left = posthoc(ends, [0.05, 0.0501, 0.1] * 400, 400, 0.15)
    assert float(x.abs().sum()) < 5 and left < 1e-4


@pytest.mark.parametrize("std", [0, -0.1, WIDEST, 0.3, float("nan")])
def test_a_width_without_a_profile_is_refused(std: float) -> None:
    with pytest.raises(UserError, match=r"std: must be above 0 and below 0\.2887 \(the plain mean\), got "):
        PowerProfile(std)
