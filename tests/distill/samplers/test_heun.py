"""Heun's method is today's to the bit where that existed, and takes any number of evaluations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill.denoiser import GuidableDenoiser
from distill.paths import Path
from distill.random import expand
from distill.samplers import Heun
from distill.sampling import sample
from tests.distill.samplers.mixture import Z, mixture
from tests.toys import ALL_PATHS


@torch.no_grad()
def by_diffusers(denoiser: GuidableDenoiser, z: Tensor, evaluations: int) -> Tensor:
    """Sample by diffusers' own scheduler, as this package did before it had samplers."""
    from diffusers import HeunDiscreteScheduler

    scheduler = HeunDiscreteScheduler(prediction_type="sample", use_karras_sigmas=True)
    path = denoiser.path
    ends = path.nsr(path.time(torch.tensor([0.002, 80.0], dtype=torch.float64)))
    scheduler.register_to_config(sigma_min=float(ends[0]), sigma_max=float(ends[1]))
    scheduler.set_timesteps((evaluations + 1) // 2)
    scheduler.set_begin_index(0)
    times = path.time(scheduler.sigmas[:-1].double())
    scheduler.sigmas = torch.cat([path.nsr(times), torch.zeros(1, dtype=torch.float64)])
    x: Tensor = scheduler.sigmas[0] * z
    for time, timestep in zip(times.tolist(), scheduler.timesteps, strict=True):
        t = torch.full((len(z),), time, dtype=torch.float64, device=z.device)
        x0 = denoiser(expand(path.alpha(t), x).to(x.dtype) * x, t, None)
        x = scheduler.step(x0, timestep, x).prev_sample
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("path", ALL_PATHS.values(), ids=ALL_PATHS)
def test_samples_are_those_of_before_to_the_bit(path: Path, dtype: torch.dtype) -> None:
    teacher, z = mixture(path, dtype), Z.to(dtype)
    for evaluations in (3, 5, 7, 19, 35, 71):
        before = by_diffusers(teacher, z, evaluations)
        assert torch.equal(Heun(evaluations=evaluations).sample(teacher, z), before)
        assert torch.equal(sample(teacher, z, evaluations=evaluations), before)
    assert torch.equal(Heun().sample(teacher, z), by_diffusers(teacher, z, 35))


@pytest.mark.parametrize("evaluations", [1, 2, 3, 4, 35, 36])
def test_it_takes_the_evaluations_that_it_is_given(evaluations: int) -> None:
    teacher, calls = mixture(ALL_PATHS["edm"]), list[float]()
    teacher.register_forward_pre_hook(lambda module, inputs: calls.append(float(inputs[1][0])))
    sampler = Heun(evaluations=evaluations)
    sampler.sample(teacher, Z)
    assert len(calls) == sampler.calls == evaluations
    assert calls[0] == pytest.approx(80)
    assert calls == sorted(calls, reverse=True)


def test_the_last_steps_of_an_even_number_are_eulers() -> None:
    """Two evaluations are Euler's method, and four have one step of Heun's before that."""
    teacher, levels = mixture(ALL_PATHS["edm"]), Heun(evaluations=4).levels(ALL_PATHS["edm"]).nsr
    x = levels[0] * Z
    t = [torch.full((len(Z),), float(level), dtype=torch.float64) for level in levels]

    def slope(x: Tensor, index: int) -> Tensor:
        return (x - teacher(x, t[index])) / levels[index]

    first = slope(x, 0)
    x = x + (levels[1] - levels[0]) * (first + slope(x + (levels[1] - levels[0]) * first, 1)) / 2
    for index in (1, 2):
        x = x + (levels[index + 1] - levels[index]) * slope(x, index)
    assert torch.allclose(Heun(evaluations=4).sample(teacher, Z), x, atol=1e-12)
