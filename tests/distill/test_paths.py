"""Schedules, their derivatives and their inverse in the noise-to-signal ratio, against values from outside."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from distill import EDM, VP, ContinuousVP, DiscreteVP, Flow, Path, Random, UserError
from distill.paths import PATHS, ramp
from distill.times import LogNormal
from tests.toys import ALL_PATHS

LINEAR = DiscreteVP(0.0001, 0.02, "linear")
every_path = pytest.mark.parametrize("path", ALL_PATHS.values(), ids=ALL_PATHS)
TIMES = {
    "edm": (0.002, 0.5, 80.0),
    "vp": (1e-4, 0.5, 1.0),
    "discrete_vp": (0.0, 500.0, 999.0),
    "continuous_vp": (0.002, 0.5, 700.0),
    "flow": (1e-4, 0.5, 0.999),
}


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_every_path_is_tested_here() -> None:
    assert set(TIMES) == set(PATHS)


@every_path
def test_time_inverts_nsr(path: Path) -> None:
    low, _, high = TIMES[next(name for name in PATHS if ALL_PATHS[name] is path)]
    t = torch.linspace(low, high, 1000, dtype=torch.float64)
    assert torch.allclose(path.time(path.nsr(t)), t, rtol=1e-9, atol=1e-12)
    assert torch.allclose(path.time(path.nsr(t.float())).double(), t, rtol=1e-3, atol=1e-5)
    assert bool((path.nsr(t).diff() > 0).all())  # from clean to noise
    assert torch.equal(path.nsr(t), path.sigma(t) / path.alpha(t))


@every_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_device_of_times_are_kept(path: Path, dtype: torch.dtype) -> None:
    t = torch.tensor([0.5], dtype=dtype)
    values = (path.alpha(t), path.sigma(t), path.nsr(t), path.time(t), path.network_time(t), *path.derivatives(t))
    assert all(value.dtype == dtype and value.shape == (1,) for value in values)


@pytest.mark.parametrize("path", [EDM(), VP(), VP(0.2, 11.0), ContinuousVP(), Flow()], ids=str)
def test_derivatives_by_finite_differences(path: Path) -> None:
    t, h = double(0.05, 0.3, 0.9), 1e-6
    for exact, schedule in zip(path.derivatives(t), (path.alpha, path.sigma), strict=True):
        assert torch.allclose(exact, (schedule(t + h) - schedule(t - h)) / (2 * h), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("path", [DiscreteVP(), LINEAR], ids=["scaled_linear", "linear"])
def test_derivatives_of_discrete_paths_are_in_the_angle(path: DiscreteVP) -> None:
    t = torch.arange(1000).double()
    angle = torch.atan2(path.sigma(t), path.alpha(t))
    alpha_dot, sigma_dot = path.derivatives(t)
    assert torch.allclose(alpha_dot, -angle.sin(), rtol=1e-12)
    assert torch.allclose(sigma_dot, angle.cos(), rtol=1e-12)


def test_anchors_of_stable_diffusion() -> None:
    path = DiscreteVP()
    assert path.alpha(double(399)).item() == pytest.approx(0.653, abs=5e-4)
    assert path.sigma(double(399)).item() == pytest.approx(0.758, abs=5e-4)
    assert path.nsr(double(625)).item() == pytest.approx(2.5, abs=5e-3)
    assert path.nsr(double(999)).item() == pytest.approx(14.6, abs=0.05)
    assert path.alpha(double(999)).item() == pytest.approx(0.0683, abs=5e-5)
    assert path.time(double(2.5)).item() == 625


def test_anchors_of_linear_betas() -> None:
    assert LINEAR.nsr(double(999)).item() == pytest.approx(157, abs=1)
    assert LINEAR.alpha(double(999)).item() == pytest.approx(0.0064, abs=5e-5)
    assert LINEAR.time(double(2.5)).item() == pytest.approx(440, abs=5)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
def test_discrete_paths_are_those_of_diffusers(schedule: str) -> None:
    scheduler = DDPMScheduler(beta_start=0.0009, beta_end=0.013, beta_schedule=schedule, num_train_timesteps=700)
    path = DiscreteVP(0.0009, 0.013, schedule, 700)
    assert torch.allclose(path.alphas_cumprod.float(), scheduler.alphas_cumprod, rtol=1e-5)
    same = DiscreteVP(betas=tuple(scheduler.betas.tolist()))
    assert repr(path) == f"DiscreteVP(700 steps, {schedule} betas from 0.0009 to 0.013)"
    assert repr(same) == "DiscreteVP(700 betas from 0.0009 to 0.013)"
    assert torch.allclose(same.alphas_cumprod.float(), scheduler.alphas_cumprod, rtol=1e-5)
    steps = torch.tensor([0, 399, 699])  # integers, as a scheduler hands them over
    assert torch.allclose(path.alpha(steps), scheduler.alphas_cumprod[steps].sqrt(), rtol=1e-5)
    assert torch.allclose(
        path.sigma(steps), (1 - scheduler.alphas_cumprod[steps]).sqrt(), rtol=1e-4
    )  # theirs is float32


def test_discrete_times_are_the_nearest_in_the_logarithm() -> None:
    path = DiscreteVP()
    levels = path.nsr(torch.arange(1000).double())
    for nsr in double(0.001, 0.0343, 0.7, 3.3, 1e3, math.inf):
        assert path.time(nsr[None]).item() == (levels / nsr).log().abs().argmin().item() or nsr.isinf()
    assert path.time(double(math.inf)).item() == 999
    assert path.alpha(double(399.4, 398.6, -3, 2000)).tolist() == path.alpha(double(399, 399, 0, 999)).tolist()


def test_discrete_paths_compare_by_their_fields() -> None:
    assert DiscreteVP(betas=[0.1, 0.2]) == DiscreteVP(betas=(0.1, 0.2))  # type: ignore[arg-type]  # as JSON gives it
    assert hash(DiscreteVP(betas=[0.1, 0.2])) == hash(DiscreteVP(betas=(0.1, 0.2)))  # type: ignore[arg-type]
    assert DiscreteVP() != LINEAR


def test_zero_terminal_signal() -> None:
    """The last beta may be 1: step 2 is then pure noise."""
    path = DiscreteVP(betas=(0.1, 0.5, 1.0))
    assert path.nsr(double(2)).item() == math.inf
    assert path.time(double(math.inf, 1e6, 1.0)).tolist() == [2, 1, 1]


def test_discrete_path_refusals() -> None:
    for betas, span in (((0.1, 1.2), "0.1 to 1.2"), ((0.0, 0.3), "0 to 0.3"), ((math.nan,), "nan to nan")):
        with pytest.raises(UserError) as error:
            DiscreteVP(betas=betas)
        assert str(error.value) == f"betas: must lie in (0, 1], go from {span}"
    with pytest.raises(UserError, match=r"^schedule: must be 'scaled_linear' or 'linear', got 'cosine'$"):
        DiscreteVP(schedule="cosine")


def test_vp_by_quadrature_of_its_rate() -> None:
    """alpha = exp(-1/2 integral of beta), and variance is preserved, also where sigma is tiny."""
    path = VP()
    for end in (1e-3, 0.3, 1.0):
        t = torch.linspace(0, end, 10001, dtype=torch.float64)
        integral = torch.trapezoid(0.1 + t * 19.9, t)
        assert path.alpha(double(end)).item() == pytest.approx(math.exp(-0.5 * float(integral)), rel=1e-9)
        assert path.sigma(double(end)).item() == pytest.approx((1 - math.exp(-float(integral))) ** 0.5, rel=1e-9)
    assert path.sigma(torch.tensor([1e-6])).item() == pytest.approx(1e-7**0.5, rel=1e-4)  # float32 keeps it


def test_ends_of_the_flow() -> None:
    assert Flow().time(double(0.0, 1.0, math.inf)).tolist() == [0.0, 0.5, 1.0]
    assert Flow().nsr(double(1.0)).item() == math.inf


def test_network_times() -> None:
    """The paths give networks trained elsewhere the times of their own training."""
    assert EDM().network_time(double(2.5)).item() == pytest.approx(1000 * math.log(2.5) / 4, rel=1e-12)
    assert VP().network_time(double(1.0)).item() == 999
    assert Flow().network_time(double(0.25)).item() == 250
    assert DiscreteVP().network_time(double(625)).item() == 625
    assert ContinuousVP().network_time(double(700.0)).item() == pytest.approx(1.637770, abs=1e-6)


def test_ends_of_continuous_vp() -> None:
    """Variance is preserved from the clean sample to pure noise."""
    path, t = ContinuousVP(), double(0.0, 1.0, math.inf)
    assert path.alpha(t).tolist() == pytest.approx([1.0, 0.5**0.5, 0.0])
    assert path.sigma(t).tolist() == pytest.approx([0.0, 0.5**0.5, 1.0])


@every_path
def test_diffuse(path: Path) -> None:
    x = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    noise, t = torch.ones(3, 2, 4, 5), path.time(double(0.1, 1.0, 5.0))
    x_t = path.diffuse(x, t, noise)
    assert x_t.shape == x.shape
    assert x_t.dtype == torch.float32
    for i in range(3):
        assert torch.allclose(x_t[i], path.alpha(t[i]).float() * x[i] + path.sigma(t[i]).float())
    (grad,) = torch.autograd.grad(x_t.sum(), x)
    assert torch.equal(grad[:, 0, 0, 0], path.alpha(t).float())


@every_path
def test_draw_is_the_law_of_the_noised_sample(path: Path) -> None:
    random = Random.at(0, torch.arange(4000))
    x = torch.full((4000, 5), 2.0)
    x_t, t, noise = path.draw(x, LogNormal(-0.5, 1.0), random)
    assert t.dtype == torch.float64
    assert torch.equal(x_t, path.diffuse(x, t, noise))
    log_nsr = path.nsr(t).log()
    assert log_nsr.mean().item() == pytest.approx(-0.5, abs=0.05)
    assert log_nsr.std().item() == pytest.approx(1.0, abs=0.05)
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    for values in (noise[:, 0], noise[:, 0] ** 2):  # the square too: Box and Muller's radius is one uniform number
        assert abs(float(torch.corrcoef(torch.stack([log_nsr, values.double()]))[0, 1])) < 0.05
    again = path.draw(x, LogNormal(-0.5, 1.0), random)
    assert all(torch.equal(a, b) for a, b in zip(again, (x_t, t, noise), strict=True))


def test_ramp() -> None:
    u = double(0.0, 0.2, 0.5, 0.8, 1.0)
    assert ramp(u, 0.002, 80.0, 7.0).tolist() == pytest.approx([0.002, 0.085, 2.515, 24.41, 80.0], rel=3e-3)
    steps = torch.arange(1000) / 999  # EDM's grid of 1000 levels
    levels = ramp(steps.double(), 0.002, 80.0, 7.0)
    assert [round(levels[i].item(), d) for i, d in ((20, 4), (500, 2), (800, 1), (980, 2))] == [
        0.0032,
        2.53,
        24.5,
        72.05,
    ]
