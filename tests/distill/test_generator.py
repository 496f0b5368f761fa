"""The one-step generator asks its denoiser once, at one time, with noise of one scale."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from distill import EDM, VP, Denoiser, DiscreteVP, Flow, Generator, Path, UserError
from distill.conditions import ConditionLike
from distill.generator import PRESETS
from tests.toys import ALL_PATHS, Tanh

Z = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(0))


class Echo(nn.Module):
    """Predicts its own input as eps, and counts."""

    calls = 0

    def forward(self, x: Tensor, time: Tensor, cond: ConditionLike) -> Tensor:
        self.calls += 1
        self.time, self.cond = time, cond
        return x


@pytest.mark.parametrize("path", ALL_PATHS.values(), ids=ALL_PATHS)
def test_generator_is_the_denoiser_at_one_time(path: Path) -> None:
    denoiser = Denoiser(Tanh(8, 0), path, "edm")
    t = float(path.time(torch.tensor(2.5, dtype=torch.float64)))
    times = torch.full((3,), t, dtype=torch.float64)
    cond = torch.tensor([0, 1, 2])
    sigma = float(path.sigma(times)[0])
    assert torch.equal(Generator(denoiser, t)(Z, cond), denoiser(sigma * Z, times, cond))
    assert torch.equal(Generator(denoiser, t, scale=1.0)(Z, cond), denoiser(Z, times, cond))
    assert Generator(denoiser, t)(Z).dtype == torch.float32


def test_one_call_with_the_time_and_condition_given() -> None:
    echo = Echo()
    cond = torch.tensor([4, 5, 6])
    x = Generator(Denoiser(echo, DiscreteVP(), "eps"), 399.0, scale=1.0)(Z, cond)  # SDXL's entry in DMD2
    assert echo.calls == 1
    assert echo.time.tolist() == [399.0] * 3
    assert echo.cond is cond
    assert torch.allclose(x, (1 - 0.758) / 0.653 * Z, rtol=4e-3)


ENTRIES = {  # nsr of the time, and the input's scale
    "sid_edm": (2.5, 2.5),
    "diff_instruct_edm": (1.0, 1.0),
    "dmd2_edm": (80.0, 80.0),
    "sid_lsg_sd": (2.50, 0.928),
    "dmd2_sd": (14.6, 1.0),
    "dmd2_sdxl": (1.161, 1.0),
    "noise_flow": (math.inf, 1.0),
}


@pytest.mark.parametrize("name", PRESETS)
def test_published_entries(name: str) -> None:
    path, t, scale = PRESETS[name]
    generator = Generator(Denoiser(Echo(), path(), "eps"), t, scale)
    at = torch.tensor([t], dtype=torch.float64)
    assert (float(path().nsr(at)), generator.scale) == pytest.approx(ENTRIES[name], rel=2e-3)


def test_a_flow_from_pure_noise() -> None:
    flow = Generator(Denoiser(Echo(), Flow(), "velocity"), 1.0)
    assert torch.equal(flow(Z), torch.zeros_like(Z))  # x - u, finite where alpha = 0


def test_gradient_reaches_the_network() -> None:
    generator = Generator(Denoiser(Tanh(8, 0), EDM(), "edm"), 2.5)
    generator(Z, torch.tensor([0, 1, 2])).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in generator.parameters())


@pytest.mark.parametrize(
    ("path", "t"),
    [
        *((EDM(), 0.0), (EDM(), -1.0), (VP(), 0.0), (Flow(), 0.0), (Flow(), 1.5), (EDM(), math.nan)),
        *((DiscreteVP(), 1000.0), (DiscreteVP(), 624.5), (DiscreteVP(), -1.0), (DiscreteVP(betas=(0.1,) * 400), 625.0)),
    ],
)
def test_times_off_the_path_or_without_noise_are_refused(path: Path, t: float) -> None:
    with pytest.raises(UserError) as error:
        Generator(Denoiser(Echo(), path, "edm"), t)
    assert str(error.value) == f"generator: t = {t:g} is not a noisy time of the path {path!s:.120}"


@pytest.mark.parametrize("steps", [1, 5, 1000])
def test_every_step_of_a_grid_is_a_time(steps: int) -> None:
    for path in (DiscreteVP(steps=steps), DiscreteVP(betas=(*[0.02] * (steps - 1), 1.0))):  # to zero terminal SNR
        for t in {0, steps // 2, steps - 1}:
            assert Generator(Denoiser(Echo(), path, "v"), float(t)).scale > 0
