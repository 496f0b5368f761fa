"""Averages by value: half-life in images, ramp-up, power functions, buffers; and their snapshots."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from distill.power_ema import PowerProfile
from tests.tiny import experiment, fit_run, recipe
from trainers.checkpoints.posthoc_ema import rewind_snapshots, snapshots
from trainers.engine.player import average, half_life_beta
from trainers.recipe.run import Average

POWER = {"stds": [0.2], "snapshot_every": 100}


def module(value: float) -> nn.Module:
    layer = nn.Linear(1, 1, bias=False)
    layer.register_buffer("count", torch.tensor(value))
    nn.init.constant_(layer.weight, value)
    return layer


def averaged(settings: Average, updates: int, batch_size: int, first: int = 0) -> float:
    """From 0 towards 1 for some updates."""
    layer = module(0.0)
    ema = average(layer, settings)
    nn.init.constant_(layer.weight, 1.0)  # type: ignore[arg-type]
    for update in range(updates):
        ema.update(first + update * batch_size, batch_size)
    return float(ema.module.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [1, 10, 50, 100])
def test_after_one_half_life_the_old_weighs_a_half(batch_size: int) -> None:
    settings = Average(half_life=100, ramp_up=0)
    assert averaged(settings, 100 // batch_size, batch_size) == pytest.approx(0.5, abs=1e-5)
    assert averaged(settings, 300 // batch_size, batch_size) == pytest.approx(0.875, abs=1e-5)


def test_the_factor_by_value() -> None:
    ema = Average(half_life=500_000, ramp_up=0.05)  # SiD's, batch 256
    assert half_life_beta(ema, 0, 256) == 0
    assert half_life_beta(ema, 256, 256) == pytest.approx(0.5**20)  # half-life 12.8 images
    assert half_life_beta(ema, 1_000_000, 256) == pytest.approx(0.5 ** (256 / 50_000))
    assert half_life_beta(ema, 10_000_000, 256) == pytest.approx(0.5 ** (256 / 500_000))
    assert half_life_beta(ema, 90_000_000, 256) == pytest.approx(0.5 ** (256 / 500_000))
    assert half_life_beta(Average(half_life=100, ramp_up=0), 0, 50) == pytest.approx(0.5**0.5)


def test_the_first_update_copies_with_a_ramp_and_always_without_an_average() -> None:
    assert averaged(Average(half_life=100, ramp_up=0.05), 1, 10) == 1.0
    assert averaged(Average(half_life=100, ramp_up=0), 1, 10) == pytest.approx(1 - 0.5**0.1, abs=1e-6)
    assert averaged(Average(half_life=0), 1, 10, first=10**9) == 1.0
    assert averaged(Average(half_life=0, ramp_up=0), 1, 10, first=10**9) == 1.0


def test_the_loop_averages_by_the_images_before_the_update(teachers: Path, tmp_path: Path) -> None:
    run = experiment(recipe(teachers / "edm", images=24, ema={"half_life": 1000, "ramp_up": 0.5}, power_ema=POWER))
    weights: list[Tensor] = []
    state = fit_run(run, tmp_path / "one").state
    assert state.images == 24
    for images in (8, 16, 24):
        shorter = experiment(recipe(teachers / "edm", images=images, ema={"half_life": 0}))
        own = fit_run(shorter, tmp_path / str(images)).state
        weights.append(next(iter(own.players["generator"].parameters)).detach())
    half_life = power = weights[0]
    for new, seen in zip(weights[1:], (8, 16), strict=True):
        half_life = new + 0.5 ** (8 / (0.5 * seen)) * (half_life - new)
        power = new + (seen / (seen + 8)) ** (PowerProfile(0.2).gamma + 1) * (power - new)
    assert torch.allclose(next(iter(state.ema.module.parameters())), half_life, atol=1e-7)
    power_average = state.power_ema[0.2].module
    assert torch.allclose(next(iter(power_average.parameters())), power, atol=1e-7)
    (snapshot,) = snapshots(tmp_path / "one")
    assert (snapshot.images, snapshot.std) == (24, 0.2)
    written = load_file(snapshot.file)
    assert all(torch.equal(written[key], value) for key, value in power_average.state_dict().items())


def test_buffers_are_copied_and_the_module_is_left_alone() -> None:
    layer = module(0.0).train()
    ema = average(layer, Average(half_life=100, ramp_up=0))
    with torch.no_grad():
        layer.weight.fill_(4.0)  # type: ignore[union-attr, operator]
        layer.count.fill_(7.0)  # type: ignore[union-attr, operator]
    ema.update(0, 100)
    assert (float(ema.module.weight), float(ema.module.count)) == (2.0, 7.0)  # type: ignore[arg-type]
    assert layer.weight.tolist() == [[4.0]]  # type: ignore[union-attr, operator]
    assert layer.training and layer.weight.requires_grad  # type: ignore[union-attr]
    assert not ema.module.training and not any(p.requires_grad for p in ema.module.parameters())


def test_a_rewind_drops_later_and_half_written_snapshots(tmp_path: Path) -> None:
    root = tmp_path / "power_ema"
    for name in (f"{8:012d}", f"{16:012d}", f"{24:012d}", f".{8:012d}-staging", f".{24:012d}-old"):
        (root / name).mkdir(parents=True)
        (root / name / "0.1.safetensors").write_bytes(b"")
    rewind_snapshots(tmp_path, 16)
    assert sorted(path.name for path in root.iterdir()) == [f"{8:012d}", f"{16:012d}"]
    assert [snapshot.images for snapshot in snapshots(tmp_path)] == [8, 16]
    rewind_snapshots(tmp_path / "without", 16)
