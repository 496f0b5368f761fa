"""Samplers that a path cannot take, and settings that do not go together, are refused by one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from distill import EDM, VP, ContinuousVP, Denoiser, DiscreteVP, Flow, Path, UserError
from distill.networks.network import Network
from distill.samplers import DDIM, DPM2M, DPMSDE, SAMPLERS, Euler, Guidance, Heun, Sampler, SASolver
from tests.distill.samplers.mixture import Z, mixture, named

SETTINGS: dict[str, tuple[Callable[[], Any], str]] = {
    "evaluations": (lambda: Euler(evaluations=0), r"^evaluations: must be at least 1, got 0$"),
    "range": (lambda: Heun(low=2.0, high=1.0), r"^low, high: must satisfy 0 < low < high, got 2.0 and 1.0$"),
    "rho": (lambda: Heun(rho=0.0), r"^rho: must be positive, got 0.0$"),
    "shift": (lambda: Euler(shift=3.0), r"^shift: goes with spacing: uniform alone, got spacing: ramp$"),
    "times": (lambda: Euler(times=(0.5, 0.7)), r"^times: must fall from noise to the sample, got \[0.5, 0.7\]$"),
    "times, spacing": (lambda: Euler(times=(0.5,), spacing="log_snr"), r"^times: stand in place of spacing and shift"),
    "eta": (lambda: DDIM(eta=1.5), r"^eta: must be between 0 and 1, got 1.5$"),
    "tau": (lambda: SASolver(tau=-1.0), r"^tau: must be at least 0, got -1.0$"),
    "tau interval": (lambda: SASolver(tau_interval=(1.0, 0.5)), r"^tau_interval: must be two ratios, 0 <= low < high"),
    "no scale": (lambda: Guidance(), r"^guidance: one of cfg and autoguidance is the scale, got neither$"),
    "two scales": (
        lambda: Guidance(cfg=2.0, autoguidance=2.0, weak_teacher="w"),
        r"^guidance: one of cfg and autoguidance is the scale, got both$",
    ),
    "no weak": (lambda: Guidance(autoguidance=2.0), r"^guidance: autoguidance and weak_teacher go"),
    "weak alone": (
        lambda: Guidance(cfg=2.0, weak_teacher="w"),
        r"^guidance: autoguidance and weak_teacher go",
    ),
    "interval": (lambda: Guidance(cfg=2.0, interval=(3.0, 1.0)), r"^interval: must be two ratios, 0 <= low < high"),
    "rescale": (lambda: Guidance(cfg=2.0, rescale=1.5), r"^rescale: must be between 0 and 1, got 1.5$"),
}
PATHS: dict[str, tuple[Sampler, Path, str]] = {
    "no end": (Euler(spacing="uniform"), EDM(), r"^spacing: uniform needs a path whose time has an end \(flow, vp,"),
    "no end, vp": (Euler(spacing="uniform"), ContinuousVP(), r"^spacing: uniform needs a path whose time has an end"),
    "shift": (Euler(spacing="uniform", shift=3.0), VP(), r"^sampler.shift: needs a flow, the teacher's path is VP"),
    "pure noise": (Heun(spacing="uniform"), Flow(), r"^sampler: Heun cannot start where no signal is left"),
    "pure noise, times": (Heun(times=(1.0, 0.5)), Flow(), r"^sampler: Heun cannot start where no signal is left"),
    "times": (Euler(times=(1.0, 0.0)), Flow(), r"^sampler.times: \[1.0, 0.0\] do not lie on the teacher's path Flow"),
    "beyond": (Euler(times=(3.0, 0.5)), Flow(), r"^sampler.times: \[3.0, 0.5\] do not lie on the teacher's path Flow"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name: str) -> None:
    make, message = SETTINGS[name]
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("name", PATHS)
def test_paths(name: str) -> None:
    """Before the network is asked for anything."""
    sampler, path, message = PATHS[name]
    with pytest.raises(UserError, match=message):
        sampler.check(path)
    teacher = mixture(path)
    teacher.register_forward_pre_hook(lambda module, inputs: pytest.fail("the network was asked"))
    with pytest.raises(UserError, match=message):
        sampler.sample(teacher, Z)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_grid_of_steps(name: str) -> None:
    """As many evaluations as it has steps are taken, each at a step of its own, and more are refused."""
    path = DiscreteVP(steps=40, beta_start=0.001, beta_end=0.3)
    teacher, sampler = mixture(path), named(name, path, evaluations=40)
    seen: list[float] = []
    teacher.register_forward_pre_hook(lambda module, inputs: seen.append(float(inputs[1][0])))
    samples = sampler.sample(teacher, Z)
    assert samples.isfinite().all() and len(seen) == 40
    if name not in ("heun", "euler", "ddim"):  # these may ask a step twice: they divide by no distance of two levels
        assert seen == [float(step) for step in reversed(range(40))]
        with pytest.raises(UserError, match=r"^evaluations: the teacher's path has 40 steps, got 41 levels$"):
            named(name, path, evaluations=41).sample(teacher, Z)


@pytest.mark.parametrize(
    "name", ["euler", "ddim", "dpm_2m", "dpm_3m", "dpm_sde", "unipc", "deis", "sa_solver", "dpm_v3"]
)
def test_pure_noise_is_a_start(name: str) -> None:
    """On a flow at t = 1, where x_t / alpha is infinite, samples are those of a start at a large finite ratio."""
    start = named(name, Flow(), evaluations=60, spacing="uniform")
    samples = start.sample(mixture(Flow(), torch.float32), Z.float())
    assert samples.isfinite().all()
    if not start.stochastic:
        near = Heun(evaluations=401, high=1e4, spacing="log_snr").sample(mixture(EDM()), Z)
        assert float((samples - near).square().mean().sqrt()) < 0.1


def test_without_a_null_condition() -> None:
    teacher = Denoiser(Network(), EDM(), "x0")
    with pytest.raises(UserError, match=r"^sampler.guidance.cfg: the teacher states no null condition"):
        Guidance(cfg=2.0).check(teacher)
    Guidance(cfg=1.0).check(teacher)
    Guidance(autoguidance=2.0, weak_teacher="weak").check(teacher)


def test_a_weak_teacher_of_another_kind() -> None:
    guidance = Guidance(autoguidance=2.0, weak_teacher="weak")
    guidance.check_weak(mixture(EDM()), mixture(EDM()))
    with pytest.raises(UserError, match=r"^sampler.guidance.weak_teacher: 'weak' has path Flow\(\), the teacher EDM"):
        guidance.check_weak(mixture(Flow()), mixture(EDM()))


def test_settings_are_values() -> None:
    assert DPM2M(evaluations=12) == DPM2M(evaluations=12) != DPM2M(evaluations=13)
    assert not any(SAMPLERS[name]().stochastic for name in ("heun", "euler", "ddim", "dpm_2m", "unipc", "deis"))
    assert DPMSDE().stochastic and SASolver().stochastic and not SASolver(tau=0.0).stochastic
