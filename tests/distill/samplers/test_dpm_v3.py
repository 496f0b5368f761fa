"""DPM-Solver-v3: its special cases, its statistics and their file, and its error at few evaluations."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from distill import EDM, DiscreteVP, Flow, UserError
from distill.samplers import DDIM, DEIS, DPM2M, DPMV3, Heun, ModelStatistics, measure_statistics
from distill.samplers.levels import Levels
from distill.samplers.statistics import MOST_LEVELS, MOST_NUMBERS
from distill.teachers import GaussianMixture
from tests.distill.samplers.mixture import LOW, Z, exact, mixture, statistics, statistics_file

DATA, NOISE = (ModelStatistics.constant(EDM(), (2,), *values) for values in ((1.0,), (0.0, -1.0)))
"""The constants of DPM-Solver++, and those of DPM-Solver."""


class Exact2M(DPM2M):
    """DPM-Solver++ (2M) with the exact weight of the first difference. The usual one takes that of the middle."""

    def scheduler(self, levels: Levels) -> Any:
        from diffusers import DPMSolverMultistepScheduler

        return DPMSolverMultistepScheduler(prediction_type="sample", solver_order=2, solver_type="heun")


SAME: dict[str, tuple[ModelStatistics, int, Any, float]] = {
    "ddim, by x0": (DATA, 1, DDIM(evaluations=16, **LOW), 1e-7),
    "ddim, by noise": (NOISE, 1, DDIM(evaluations=16, **LOW), 1e-7),
    "dpm_2m": (DATA, 2, Exact2M(evaluations=16, **LOW), 1e-6),
    "deis 2": (NOISE, 2, DEIS(evaluations=16, order=2, **LOW), 1e-7),
    "deis 3": (NOISE, 3, DEIS(evaluations=16, order=3, **LOW), 1e-7),
}


@pytest.mark.parametrize("name", SAME)
def test_constant_statistics_make_other_samplers(name: str) -> None:
    known, order, other, within = SAME[name]
    ours = DPMV3(evaluations=16, order=order, corrector=False, **LOW).walk(known, mixture(EDM()), Z)
    assert torch.allclose(ours, other.sample(mixture(EDM()), Z), atol=within, rtol=0)


def test_constants_make_2m_with_its_own_weight_up_to_the_third_power_of_a_step() -> None:
    """`dpm_2m` takes (1 - exp(-h)) / 2 for the weight of the first difference, in place of an integral."""

    def apart(count: int) -> Tensor:
        settings: dict[str, Any] = {"evaluations": count, "low": 0.1, "high": 10.0, "spacing": "log_snr"}
        ours = DPMV3(corrector=False, **settings).walk(DATA, mixture(EDM()), Z)
        return (ours - DPM2M(**settings).sample(mixture(EDM()), Z)).square().mean().sqrt()

    assert 3.5 < apart(100) / apart(200) < 4.5  # of a whole walk: the second power


@pytest.mark.parametrize("high", [7.3, 10.0, 80.0])
def test_a_level_that_is_rounded_has_its_statistics(high: float) -> None:
    """7.3 is above the level of its statistics by the rounding to float32, and 10.0 is it."""
    first = -torch.tensor(high, dtype=torch.float64).log()
    narrow = replace(NOISE, log_snr=torch.stack([first, NOISE.log_snr[-1].double()]))
    sampler = DPMV3(evaluations=8, high=high)
    samples = [sampler.walk(known, mixture(EDM()), Z) for known in (narrow, NOISE)]
    assert torch.allclose(*samples, atol=1e-7, rtol=0)


@pytest.mark.parametrize("spacing", ["ramp", "log_snr"])
@pytest.mark.parametrize("count", [5, 6, 7, 8, 9, 10])
def test_few_evaluations(count: int, spacing: Any) -> None:
    """The error is at most half of that of dpm_2m."""

    def error(samples: Tensor) -> float:
        return float((samples - exact()).square().mean().sqrt())

    ours = DPMV3(evaluations=count, spacing=spacing, statistics=statistics_file(EDM()))
    theirs = DPM2M(evaluations=count, spacing=spacing)
    assert error(ours.sample(mixture(EDM()), Z)) < 0.5 * error(theirs.sample(mixture(EDM()), Z))


def test_measured_statistics_are_what_they_say() -> None:
    """By the whole Jacobian and the exact slope along accurate trajectories: another way to the same numbers."""
    found = statistics(EDM(), 0.002, 2048)
    teacher, z = mixture(EDM()), torch.randn(2048, 2, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    (bend,) = torch.gradient(found.l.double(), spacing=(found.log_snr,), dim=0)
    for place in (50, 60, 70):
        ratio = float((-found.log_snr[place]).exp())
        y, level = on_the_way(teacher, z, ratio), found.log_snr[place]

        def x0_at(y: Tensor, log_snr: Tensor) -> Tensor:
            return teacher(y, (-log_snr).exp().expand(len(y)))

        x0 = x0_at(y, level)
        jacobian = torch.func.vmap(torch.func.jacrev(lambda one, level=level: x0_at(one[None], level)[0]))(y)
        linear = 1 - jacobian.diagonal(dim1=1, dim2=2).mean(0)
        assert torch.allclose(linear, found.l[place].double(), atol=0.02, rtol=0)
        e = y - x0
        _, change = torch.func.jvp(x0_at, (y, level), (-e, torch.ones_like(level)))
        f = e - found.l[place] * y
        slope_of_f = -e - change + found.l[place] * e - bend[place] * y
        centred = f - f.mean(0)
        slope = (centred * slope_of_f).mean(0) / centred.square().mean(0)
        offset = slope_of_f.mean(0) - slope * f.mean(0)
        assert torch.allclose(slope, found.s[place].double(), atol=0.06, rtol=0)
        assert torch.allclose(offset, found.b[place].double(), atol=0.03, rtol=0)


def on_the_way(teacher: GaussianMixture, z: Tensor, ratio: float) -> Tensor:
    """Return the samples y on the probability flow at a ratio, by Heun's method in its logarithm."""
    y, steps = 80 * z, torch.linspace(math.log(80), math.log(ratio), 401, dtype=torch.float64)

    def slope(y: Tensor, log_ratio: Tensor) -> Tensor:
        return y - teacher(y, log_ratio.exp().expand(len(y)))

    for here, there in pairwise(steps):
        first = slope(y, here)
        y = y + (there - here) / 2 * (first + slope(y + (there - here) * first, there))
    return y


def test_a_gaussian_needs_one_step() -> None:
    """Where the data are Gaussian, f is constant along a trajectory, and two evaluations are exact."""
    means, std = torch.tensor([[0.3, -0.2]], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    teacher, settings = GaussianMixture(EDM(), means, std), {"low": 0.01, "spacing": "log_snr"}
    found = measure_statistics(teacher, Z, low=0.01, points=400)
    ours = DPMV3(evaluations=2, **settings).walk(found, teacher, Z)
    theirs = DPM2M(evaluations=2, **settings).sample(teacher, Z)
    fine = Heun(evaluations=4001, **settings).sample(teacher, Z)
    assert float((ours - fine).abs().max()) < 2e-3 < 0.1 < float((theirs - fine).abs().max())


def test_the_batch_and_the_dtype_change_little() -> None:
    z = Z[:32]
    first, second, third = (
        measure_statistics(mixture(EDM(), dtype), z.to(dtype), batch=batch, points=30)
        for batch, dtype in ((32, torch.float64), (5, torch.float64), (32, torch.float32))
    )
    assert torch.allclose(first.l, second.l, atol=1e-6) and torch.allclose(first.s, second.s, atol=1e-5)
    assert first.l.dtype == third.l.dtype == torch.float32
    assert torch.isfinite(third.s).all() and float(third.s.abs().max()) <= 3
    # The vectors of float32 starts are others.
    assert torch.allclose(first.l, third.l, atol=0.15)


def test_a_round_trip(tmp_path: FilePath) -> None:
    known = replace(statistics(EDM()), teacher="abc")
    known.save(tmp_path / "s.safetensors")
    back = ModelStatistics.load(tmp_path / "s.safetensors")
    assert (back.path, back.teacher) == ("EDM()", "abc")
    for name in ("log_snr", "l", "s", "b"):
        assert torch.equal(getattr(back, name), getattr(known, name)) and getattr(back, name).dtype != torch.float16
    ours = DPMV3(evaluations=6, statistics=str(tmp_path / "s.safetensors")).sample(mixture(EDM()), Z)
    assert torch.equal(ours, DPMV3(evaluations=6).walk(known, mixture(EDM()), Z))


def changed(file: FilePath, name: str, change: Callable[[Tensor], Tensor], form: str = "") -> None:
    """Write a file of statistics of which one tensor is changed."""
    known = statistics(EDM())
    tensors = {one: getattr(known, one).clone() for one in ("log_snr", "l", "s", "b")}
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, file, {"format": form or "distill model statistics 1", "path": "EDM()", "teacher": ""})


def hole(file: FilePath) -> None:
    """Write a file of statistics with more numbers than any teacher has, all of them in a hole of the file."""
    numbers = MOST_NUMBERS + 1
    text = json.dumps({"l": {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}}).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + 4 * numbers)


DAMAGED: dict[str, Callable[[FilePath], Any]] = {
    "no file": lambda file: None,
    "no safetensors": lambda file: file.write_bytes(b"\x80\x04pickle" * 9),
    "another format": lambda file: changed(file, "s", lambda s: s, "another"),
    "a tensor too many": lambda file: save_file({"x": torch.zeros(2)}, file),
    "not finite": lambda file: changed(file, "s", lambda s: s / 0),
    "levels that fall": lambda file: changed(file, "log_snr", lambda levels: levels.flip(0)),
    "too short": lambda file: changed(file, "b", lambda b: b[:-1]),
    "integers": lambda file: changed(file, "l", lambda linear: linear.long()),
    "of 8 bits": lambda file: changed(file, "s", lambda s: s.to(torch.float8_e4m3fn)),
    "far levels": lambda file: changed(file, "log_snr", lambda levels: levels * 1e12),
    "many levels": lambda file: changed(file, "log_snr", lambda levels: torch.arange(MOST_LEVELS + 1.0)),
    "a hole": lambda file: hole(file),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_file_of_something_else_is_refused(name: str, tmp_path: FilePath) -> None:
    file = tmp_path / "s.safetensors"
    DAMAGED[name](file)
    with pytest.raises(UserError, match=r"^sampler.statistics: [^\n]*s.safetensors'[^\n]*$"):
        DPMV3(statistics=str(file)).check(EDM())


def test_samples_that_are_not_finite_are_refused(tmp_path: FilePath) -> None:
    changed(tmp_path / "s.safetensors", "s", lambda s: s + 1e30)
    with pytest.raises(UserError, match=r"^sampler.statistics: by '.*s.safetensors' the samples are not finite$"):
        DPMV3(evaluations=5, statistics=str(tmp_path / "s.safetensors")).sample(mixture(EDM()), Z)


def test_what_does_not_fit_is_refused(tmp_path: FilePath) -> None:
    with pytest.raises(
        UserError, match=r"^sampler.statistics: dpm_v3 needs .* `distill sample TEACHER --sampler dpm_v3`"
    ):
        DPMV3().sample(mixture(EDM()), Z)
    ours = DPMV3(evaluations=5, statistics=statistics_file(EDM()))
    with pytest.raises(UserError, match=r"^sampler.statistics: are of a teacher with path EDM\(\), this one's is Flow"):
        ours.check(Flow())
    with pytest.raises(UserError, match=r"^sampler.statistics: are of samples with shape \(2,\), these have \(3,\)$"):
        ours.check_shape((3,))
    wide = GaussianMixture(EDM(), torch.zeros(1, 3), torch.ones(1))
    with pytest.raises(UserError, match=r"^sampler.statistics: are of samples with shape \(2,\), these have \(3,\)$"):
        ours.sample(wide, torch.zeros(2, 3))
    with pytest.raises(UserError, match=r"^statistics: cannot write '.*none/s.safetensors'"):
        statistics(EDM()).save(tmp_path / "none" / "s.safetensors")
    for message, settings in (
        ("points: must be at least 3, got 2", {"points": 2}),
        ("samples: must be at least 2", {}),
    ):
        with pytest.raises(UserError, match=f"^{message}"):
            measure_statistics(mixture(EDM()), Z if settings else Z[:1], **settings)
    broken = GaussianMixture(EDM(), torch.full((1, 2), torch.nan), torch.ones(1))
    with pytest.raises(UserError, match=r"^statistics: the teacher's estimates are not finite at some level$"):
        measure_statistics(broken, torch.ones(2, 2), points=3)


def test_a_grid_of_steps_has_statistics_at_its_steps() -> None:
    path = DiscreteVP(steps=40, beta_start=0.001, beta_end=0.3)
    found = measure_statistics(mixture(path), Z)
    assert len(found.log_snr) == 40
    assert torch.allclose(found.log_snr, -path.nsr(torch.arange(39, -1, -1.0, dtype=torch.float64)).log())
