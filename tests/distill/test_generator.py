"""The one-step generator asks its denoiser once, at one time, with noise of one scale."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from distill import EDM, VP, Denoiser, DiscreteVP, Flow, Generator, Path, UserError
from distill.denoiser import Condition
from tests.toys import ALL_PATHS, Tanh

Z = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(0))


class Echo(nn.Module):
    """Predicts its own input as eps, and counts."""

    calls = 0

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
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


def test_published_entries() -> None:
    assert Generator(Denoiser(Echo(), EDM(), "edm"), 2.5).scale == 2.5
    assert Generator(Denoiser(Echo(), EDM(), "edm"), 80.0).scale == 80.0
    assert Generator(Denoiser(Echo(), DiscreteVP(), "eps"), 625.0).scale == pytest.approx(0.928, abs=1e-3)
    assert Generator(Denoiser(Echo(), Flow(), "velocity"), 1.0).scale == 1.0
    flow = Generator(Denoiser(Echo(), Flow(), "velocity"), 1.0)
    assert torch.equal(flow(Z), torch.zeros_like(Z))  # x - u, finite where alpha = 0


def test_gradient_reaches_the_network() -> None:
    generator = Generator(Denoiser(Tanh(8, 0), EDM(), "edm"), 2.5)
    generator(Z, torch.tensor([0, 1, 2])).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in generator.parameters())


@pytest.mark.parametrize(
    ("path", "t"), [(EDM(), 0.0), (EDM(), -1.0), (VP(), 0.0), (Flow(), 0.0), (Flow(), 1.5), (EDM(), math.nan)]
)
def test_times_without_noise_are_refused(path: Path, t: float) -> None:
    with pytest.raises(UserError) as error:
        Generator(Denoiser(Echo(), path, "edm"), t)
    assert str(error.value) == f"generator: t = {t} is not a noisy time of the path {path}"
