"""Every prediction kind is an exact, well-conditioned way of writing x0, and means what the literature says."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from distill import EDM, VP, Denoiser, DiscreteVP, Flow, Path
from distill.conditions import ConditionLike
from distill.paths import beside
from distill.prediction import KINDS, Kind, coefficients, from_x0
from tests.toys import ALL_PATHS

RATIOS = torch.tensor([0.002, 0.03, 0.5, 2.5, 14.0, 80.0], dtype=torch.float64)
PURE_NOISE: list[tuple[Kind, Path, float]] = [("velocity", Flow(), 1.0), ("v", Flow(), 1.0), ("x0", Flow(), 1.0)]


class Says(nn.Module):
    """A network that gives a fixed output and keeps what it was asked."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, time: Tensor, cond: ConditionLike) -> Tensor:
        self.x, self.time = x, time
        return self.output


def sample(path: Path, t: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """x0, noise and x_t, [B, 3, 4]."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, len(t), 3, 4, generator=generator, dtype=torch.float64).to(dtype)
    return x0, noise, path.diffuse(x0, t, noise)


def round_trip(kind: Kind, path: Path, t: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x0, _, x_t = sample(path, t, dtype)
    output = from_x0(kind, path, x0, x_t, t, sigma_data=0.7)
    assert output.dtype == dtype
    return x0, Denoiser(Says(output), path, kind, sigma_data=0.7)(x_t, t)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ALL_PATHS.values(), ids=ALL_PATHS)
def test_round_trip(kind: Kind, path: Path) -> None:
    """Exact in float64. Float32 is as good as the kind allows: eps and score lose a factor nsr near pure noise."""
    t = path.time(RATIOS)
    x0, again = round_trip(kind, path, t, torch.float64)
    assert torch.allclose(again, x0, rtol=1e-10, atol=1e-12)
    x0, again = round_trip(kind, path, t, torch.float32)
    error = (again - x0).abs().flatten(1).max(1).values
    amplified = path.nsr(t) if kind in ("eps", "score") or (kind == "velocity" and path == EDM()) else 1
    assert bool((error < 1e-6 * (1 + amplified)).all())


@pytest.mark.parametrize(("kind", "path", "t"), PURE_NOISE)
def test_round_trip_at_pure_noise(kind: Kind, path: Path, t: float) -> None:
    """These kinds give x0 even where alpha = 0."""
    x0, again = round_trip(kind, path, torch.tensor([t], dtype=torch.float64), torch.float64)
    assert torch.allclose(again, x0, rtol=1e-12)


@pytest.mark.parametrize("path", ALL_PATHS.values(), ids=ALL_PATHS)
def test_outputs_by_definition(path: Path) -> None:
    """Each kind of the true x0 is what the table in prediction.py says of (x0, noise)."""
    t = path.time(RATIOS)
    x0, noise, x_t = sample(path, t)
    alpha, sigma, *dots = (c[:, None, None] for c in (path.alpha(t), path.sigma(t), *path.derivatives(t)))
    for kind, exact in (
        ("x0", x0),
        ("eps", noise),
        ("v", alpha * noise - sigma * x0),
        ("velocity", dots[0] * x0 + dots[1] * noise),
        ("score", -noise / sigma),
    ):
        assert torch.allclose(from_x0(kind, path, x0, x_t, t), exact, rtol=1e-9, atol=1e-9), kind  # type: ignore[arg-type]


def test_edm_as_published() -> None:
    """D = c_skip x + c_out F(c_in x, c_noise), table 1 of arXiv:2206.00364, sigma_data = 0.5."""
    sigma = RATIOS[:, None, None]
    _, _, x = sample(EDM(), RATIOS)
    network = Says(torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    ours = Denoiser(network, EDM(), "edm")(x, RATIOS)
    c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25) ** 0.5
    assert torch.allclose(ours, c_skip * x + c_out * network.output, rtol=1e-12)
    assert torch.allclose(network.x, x / (sigma**2 + 0.25) ** 0.5, rtol=1e-12)
    assert torch.allclose(network.time, 1000 * RATIOS.log() / 4, rtol=1e-12)


@pytest.mark.parametrize("path", [VP(), Flow()], ids=str)
def test_edm_on_another_path_is_edm_of_the_canonical_sample(path: Path) -> None:
    t = path.time(RATIOS)
    _, _, x_t = sample(path, t)
    network = Says(torch.ones_like(x_t))
    ours, seen = Denoiser(network, path, "edm")(x_t, t), network.x
    canonical = Denoiser(network, EDM(), "edm")(x_t / path.alpha(t)[:, None, None], RATIOS)
    assert torch.allclose(ours, canonical, rtol=1e-9)
    assert torch.allclose(seen, network.x, rtol=1e-9)


def test_v_is_that_of_diffusers() -> None:
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    t = torch.tensor([10, 400, 999])
    x0, noise, x_t = sample(DiscreteVP(), t.double())
    theirs = scheduler.get_velocity(x0, noise, t)
    for kind in ("v", "velocity"):  # the path's derivatives are in its angle, where the two are one
        assert torch.allclose(from_x0(kind, DiscreteVP(), x0, x_t, t), theirs, atol=1e-5)
    assert torch.allclose(x_t, scheduler.add_noise(x0, noise, t), atol=1e-5)


def test_velocity_on_flow_and_edm() -> None:
    t = torch.tensor([0.001, 0.5, 1.0], dtype=torch.float64)
    x0, noise, x_t = sample(Flow(), t)
    assert torch.allclose(from_x0("velocity", Flow(), x0, x_t, t), noise - x0, rtol=1e-9)
    for path in (EDM(), Flow()):  # D = x - t u on both
        x0, noise, x_t = sample(path, t)
        denoised = Denoiser(Says(noise), path, "velocity")(x_t, t)
        assert torch.allclose(denoised, x_t - t[:, None, None] * noise, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ALL_PATHS.values(), ids=ALL_PATHS)
def test_coefficients_are_computed_in_float64(kind: Kind, path: Path) -> None:
    """Also of times in float32, near pure noise where alpha is small; what reaches the samples is rounded once."""
    t = path.time(RATIOS).float()
    ours, exact = coefficients(kind, path, t), coefficients(kind, path, t.double())
    factors = beside(torch.zeros(6, 2, 2), *ours)
    for value, reference, factor in zip(ours, exact, factors, strict=True):
        assert value.dtype == torch.float64 and torch.equal(value, reference)
        assert torch.equal(factor, reference.float()[:, None, None])
    assert kind == "edm" or torch.equal(ours.input_scale, torch.ones(6, dtype=torch.float64))
