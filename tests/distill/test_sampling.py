"""Heun's method on Gaussians, where the probability flow has a closed form."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from distill import DiscreteVP, Path, UserError
from distill.paths import ramp
from distill.sampling import sample
from distill.teachers import GaussianMixture
from tests.toys import ALL_PATHS

MU, S = 0.4, 0.5
Z = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def teacher(path: Path, calls: list[tuple[Tensor, Tensor]] | None = None) -> GaussianMixture:
    """N(0.4, 0.5^2) in 2-D."""
    denoiser = GaussianMixture(
        path, torch.full((1, 2), MU, dtype=torch.float64), torch.tensor([S], dtype=torch.float64)
    )
    if calls is not None:
        denoiser.register_forward_pre_hook(lambda module, inputs: calls.append((inputs[0], inputs[1])))
    return denoiser


def levels(path: Path, evaluations: int) -> Tensor:
    """EDM's ramp over what the path has of 0.002 ... 80, on the levels that the path has, from noise to clean."""
    low, high = path.nsr(path.time(torch.tensor([0.002, 80.0], dtype=torch.float64))).tolist()
    return path.nsr(path.time(ramp(torch.linspace(1, 0, (evaluations + 1) // 2, dtype=torch.float64), low, high, 7.0)))


def heun(path: Path, evaluations: int) -> Tensor:
    """Algorithm 1 of arXiv:2206.00364 on dx/dn = (x - D)/n = (x - mu) n / (n^2 + s^2), written out."""
    n = [*levels(path, evaluations), torch.tensor(0.0)]
    offset = n[0] * Z - MU
    for here, there in itertools.pairwise(n):
        slope = offset * here / (here**2 + S**2)
        euler = offset + (there - here) * slope
        offset = offset + (there - here) * (slope + euler * there / (there**2 + S**2)) / 2 if there > 0 else euler
    return MU + offset


@pytest.mark.parametrize("path", ALL_PATHS.values(), ids=ALL_PATHS)
def test_samples_are_those_of_heuns_method(path: Path) -> None:
    for evaluations in (3, 17, 35):
        ours, exact = sample(teacher(path), Z, evaluations=evaluations), heun(path, evaluations)
        assert torch.allclose(ours, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", ALL_PATHS.values(), ids=ALL_PATHS)
def test_samples_approach_the_probability_flow(path: Path) -> None:
    """The exact flow scales the offset by the marginal's std. Heun's method overshoots it, on EDM's ramp by 5.5% at 35
    evaluations and s = 1/2, falling with the square of their number."""
    high = float(levels(path, 35)[0])
    assert high == pytest.approx(14.6 if isinstance(path, DiscreteVP) else 80, rel=1e-2)
    exact = (high * Z - MU) * S / (S**2 + high**2) ** 0.5
    errors = {n: float(((sample(teacher(path), Z, evaluations=n) - MU) / exact - 1).abs().max()) for n in (35, 71, 255)}
    assert errors[35] < 0.06
    assert errors[71] < 0.015
    assert errors[255] < 0.002


@pytest.mark.parametrize("path", ALL_PATHS.values(), ids=ALL_PATHS)
def test_network_is_asked_35_times_on_the_ramp(path: Path) -> None:
    calls: list[tuple[Tensor, Tensor]] = []
    sample(teacher(path, calls), Z)
    assert len(calls) == 35
    asked, steps = path.nsr(torch.stack([t[0] for _, t in calls])), levels(path, 35)
    assert torch.allclose(asked, torch.cat([steps[:1], steps[1:].repeat_interleave(2)]), rtol=1e-5)
    assert len(set(asked.tolist())) == 18
    for (x_t, t), again in zip(calls[1::2], calls[2::2], strict=True):  # corrector and next predictor: same level
        assert torch.equal(t, again[1])
        assert x_t.shape == Z.shape


@pytest.mark.parametrize("path", ALL_PATHS.values(), ids=ALL_PATHS)
def test_networks_see_samples_of_the_level_of_their_time(path: Path) -> None:
    """x_t has the standard deviation that data noised to time t has."""
    calls: list[tuple[Tensor, Tensor]] = []
    sample(teacher(path, calls), Z)
    for x_t, t in calls:
        marginal = (path.alpha(t)[0] ** 2 * S**2 + path.sigma(t)[0] ** 2) ** 0.5
        assert float(x_t.std() / marginal / Z.std()) == pytest.approx(1, abs=0.06)


def test_dtype_and_graph() -> None:
    x = sample(teacher(ALL_PATHS["edm"]).float(), Z.float().requires_grad_(), evaluations=3)
    assert x.dtype == torch.float32
    assert not x.requires_grad


@pytest.mark.parametrize("evaluations", [0, -3])
def test_no_evaluations_are_refused(evaluations: int) -> None:
    with pytest.raises(UserError) as error:
        sample(teacher(ALL_PATHS["edm"]), Z, evaluations=evaluations)
    assert str(error.value) == f"evaluations: must be at least 1, got {evaluations}"
