"""A generator of every family leaves as its own pipeline, which stock diffusers loads and calls."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distill import Generator
from distill.export.family import family_difference, stock_scheduler, write_family
from distill.teachers import load_denoiser
from distill.teachers.families import Family
from tests.pipelines import PIPELINES

LATENT = [name for name in PIPELINES if not name.startswith("ddpm")]
FLOWS = ("sd3", "flux", "sana")


def make(folder: Path, entry: tuple[float, float | None]) -> Generator:
    """The teacher, a little moved, asked at `entry`."""
    generator = Generator(load_denoiser(folder), *entry)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return generator.requires_grad_(False).eval()


ENTRIES: dict[str, tuple[tuple[float, float | None], bool, bool]] = {  # name: entry, stock on a grid, stock on a flow
    "unit": ((999, 1.0), True, True),
    "unit inside": ((625, 1.0), True, False),
    "pure": ((625, None), True, False),
    "scaled": ((399, 0.7), False, False),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("name", LATENT)
def test_the_pipeline_makes_the_generators_images(
    name: str, entry: str, pipelines: Callable[[str], Path], tmp_path: Path
) -> None:
    (t, scale), on_grid, on_flow = ENTRIES[entry]
    on_grid = on_grid and (name, entry) != ("dit", "pure")  # DiT's pipeline starts from unit noise
    flow = name.startswith(FLOWS)
    source = pipelines(name)
    generator = make(source, ((t + 1) / 1000 if flow else t, scale))
    stock = write_family(generator, source, tmp_path / "out")
    assert stock == (on_flow if flow else on_grid)
    assert family_difference(generator, source, tmp_path / "out", stock) < 1e-4
    other = Generator(generator.denoiser, generator.t, 1.1 * generator.scale)
    assert family_difference(other, source, tmp_path / "out", stock) > 1e-3


def test_schedulers_keep_the_pipelines_betas(pipelines: Callable[[str], Path]) -> None:
    source = pipelines("sd15")
    config = json.loads((source / "scheduler" / "scheduler_config.json").read_text())
    scheduler = stock_scheduler(make(source, (625, None)))
    from diffusers import DDPMScheduler

    stock = DDPMScheduler(**{key: config[key] for key in ("beta_start", "beta_end", "beta_schedule")})
    assert len(scheduler.betas) == 626
    assert float((scheduler.betas - stock.betas[:626]).abs().max() / stock.betas[625]) < 1e-6
    assert isinstance(make(source, (625, None)).denoiser.network, Family)
