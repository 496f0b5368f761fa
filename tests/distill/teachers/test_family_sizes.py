"""Latents need not be square: every family whose network allows it makes them of any height and width."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distill import UserError
from distill.teachers import load_denoiser
from distill.teachers.families import FAMILIES, LatentFamily
from tests.distill.teachers.test_families import TEXT, condition, recorded
from tests.pipelines import build

Folder = Callable[[str], Path]
WIDTHS = {"sd": 16, "sd3": 16, "flux": 16, "pixart": 24, "sana": 16}  # channels of the features at `middle`
CELLS = {"sd": 2, "sd3": 2, "flux": 2, "pixart": 2, "sana": 1}  # latents to a side of one feature


def kind(name: str) -> str:
    return next(kind for kind in ("sd3", "sd", "flux", "pixart", "sana") if name.startswith(kind))


def family(name: str, size: tuple[int, int]) -> LatentFamily:
    """Return the network of the tiny pipeline `name` at a size of latents, 2 pixels a side each."""
    pipe = build(name)
    cls = FAMILIES[type(pipe).__name__]
    network = cls(getattr(pipe, cls.part), size=size, factor=2).eval()
    assert isinstance(network, LatentFamily)
    return network


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("size", [(4, 8), (8, 4)])
@torch.no_grad()
def test_a_network_at_a_size_that_is_not_square(name: str, size: tuple[int, int]) -> None:
    """The prediction has the shape of the sample, the features that of its grid of patches."""
    network = family(name, size)
    assert network.shape[1:] == size and network.pixels == (2 * size[0], 2 * size[1])
    features: list[torch.Tensor] = []
    middle = network.get_submodule(network.taps["middle"])
    middle.register_forward_hook(lambda module, inputs, output: features.append(network.tapped(output, size)))
    x = torch.randn(2, *network.shape, generator=torch.Generator().manual_seed(0))
    time, cond = torch.tensor([5.0, 500.0]), network.example(2)
    assert network(x, time, cond).shape == x.shape
    cells = CELLS[kind(name)]
    assert features[0].shape == (2, WIDTHS[kind(name)], size[0] // cells, size[1] // cells)


@pytest.mark.parametrize("name", TEXT)
@torch.no_grad()
def test_samples_of_another_size_than_its_own(name: str) -> None:
    """A network for squares sees a sample of another size as the network that was opened for this size does."""
    square = family(name, (64, 64) if name == "pixart_alpha_1024" else (4, 4))
    height, width = (32, 64) if name == "pixart_alpha_1024" else (4, 8)
    wide = family(name, (height, width))
    assert square.shape_at(2 * height, 2 * width) == wide.shape
    x = torch.randn(2, *wide.shape, generator=torch.Generator().manual_seed(0))
    time, cond = torch.tensor([5.0, 500.0]), wide.example(2)
    assert torch.equal(square(x, time, cond), wide(x, time, cond))


def test_sizes_that_a_network_does_not_take() -> None:
    for name, size, line in (
        ("sd3", (10, 8), "SD3 takes multiples of 4 pixels alone"),
        ("sd3", (8, 4000), "SD3 takes at most 32 pixels a side"),
    ):
        with pytest.raises(UserError, match=f"^{line}$"):
            family(name, (4, 4)).shape_at(*size)
    with pytest.raises(UserError, match=r"^DiT takes samples of one size alone$"):
        family("dit", (4, 4)).shape_at(8, 16)


@pytest.mark.parametrize("name", TEXT)
@torch.no_grad()
def test_it_is_asked_as_by_its_pipeline_at_a_size_that_is_not_square(
    name: str, pipelines: Folder, tmp_path: Path
) -> None:
    """The folder's distill.json states the size; the stock pipeline is called with the same height and width."""
    folder = tmp_path / name
    shutil.copytree(pipelines(name), folder)
    height, width = (32, 64) if name.startswith("sana") else (8, 16)
    (folder / "distill.json").write_text(json.dumps({"resolution": [height, width]}))
    denoiser = load_denoiser(folder)
    network: Any = denoiser.network
    assert network.pixels == (height, width) and denoiser.image_shape == (3, height, width)
    cond = condition(name, folder, 1)
    for x, seen_time, output in recorded(name, folder):
        if name.startswith("flux"):
            rows = network.shape[1]
            x, output, seen_time = network.samples(x, rows), network.samples(output, rows), 1000 * seen_time
        if name.startswith("sana"):
            seen_time = seen_time / network.config["timestep_scale"]
        assert x.shape[1:] == network.shape
        ours = network(x, torch.as_tensor(seen_time, dtype=torch.float32).reshape(-1).expand(len(x)), cond)
        assert float((ours - output[:, : ours.shape[1]]).abs().max()) < 2e-6
    decoded = network.autoencoder.decode(torch.zeros(1, *network.shape))
    assert decoded.shape == (1, 3, height, width)


def test_tokens_are_laid_out_row_by_row() -> None:
    """Image tokens come last, after those of the prompt."""
    tokens = torch.arange(11)[None, :, None]
    for output in (tokens, (tokens * 0, tokens)):
        assert family("sd3", (4, 8)).tapped(output, (4, 8)).tolist() == [[[[3, 4, 5, 6], [7, 8, 9, 10]]]]


def test_sizes_that_a_network_cannot_make(pipelines: Folder, tmp_path: Path) -> None:
    """DiT's network unpatches into squares; a patch is never cut."""
    with pytest.raises(UserError, match=r"^resolution: a DiT makes square images alone, got \[8, 16\]$"):
        family("dit", (4, 8))
    for name in ("sd3", "flux", "pixart_sigma"):
        with pytest.raises(UserError, match=r"^resolution: must be a multiple of 4, got \[8, 10\]$"):
            family(name, (4, 5))
    folder = tmp_path / "dit"
    shutil.copytree(pipelines("dit"), folder)
    (folder / "distill.json").write_text('{"resolution": [8, 16]}')
    with pytest.raises(UserError, match=r"^teacher: '.*dit': resolution: a DiT makes square images alone, got \[8, 16"):
        load_denoiser(folder)
