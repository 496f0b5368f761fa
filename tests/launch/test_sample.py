"""distill sample and evaluate where samples are latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from distill.encoders.autoencoder import DiffusersAutoencoder
from distill.encoders.text_encoder import PipelineTextEncoder
from distill.random import Random
from distill.teachers.families import StableDiffusion
from tests.launch.conftest import Command
from tests.pipelines import pipelines
from tests.tiny import fit_run, once, recipe
from trainers.io.images import grid
from trainers.runs.load import load_trained

__all__ = ["pipelines"]

PROMPTS = ["a red cat", "a blue hat"]


@pytest.fixture
def painter(pipelines: Callable[[str], Path], shared: Path) -> Path:
    """A finished run of 8 images on prompts, from Stable Diffusion's tiny likeness."""

    def make(folder: Path) -> None:
        prompts = shared / "painter.txt"  # beside the folder, which is renamed when it is made
        prompts.write_text("one\ntwo\nthree\n")
        data = {"name": "prompts", "path": str(prompts)}
        changes = {"data": data, "cache": str(shared / "painter_cache"), "images": 8, "samples_every": 8}
        settings = recipe(pipelines("sd15"), objective="diff_instruct", **changes)
        fit_run(settings, folder / "run")

    return once(shared, "painter", make) / "run"


def test_prompts(painter: Path, pipelines: Callable[[str], Path], distill: Command) -> None:
    """Each prompt in turn through encoder, generator and decoder; one file each, or a grid."""
    assert [path.name for path in (painter / "samples").iterdir()] == [f"{8:012d}.png"]
    trained = load_trained(painter)
    made = PipelineTextEncoder(pipelines("sd15"), StableDiffusion).encode(PROMPTS)
    noise = Random.at(4, torch.arange(3)).stream("sample").stream("latent").normal(4, 8, 8)
    cond = {name: value[[0, 1, 0]] for name, value in made.items()}
    images = DiffusersAutoencoder(pipelines("sd15")).decode(trained.sampler(noise, cond))
    assert torch.allclose(trained.sample(3, seed=4, prompts=PROMPTS), images, atol=1e-5)
    assert not torch.allclose(trained.sample(3, seed=4), images, atol=1e-3)
    assert cast(Any, trained.teacher).network.text_encoder._pipe is None

    given = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    result = distill("sample", painter, *given, "--count", 3, "--seed", 4, "--separate", "--out", "apart")
    assert (result.code, result.out) == (0, "3 samples: apart\n")
    for number, image in enumerate(images):
        pixels = np.array(Image.open(f"apart/{number:06d}.png")).astype(int)
        assert pixels.shape == (16, 16, 3)
        assert abs(pixels - np.array(grid(image[None], 1, least=1, border=0)).astype(int)).max() <= 1
    result = distill("sample", painter, *given, "--columns", 2)
    assert (result.code, result.out) == (0, f"2 samples: {painter}/sample.png\n")  # as many as there are prompts
    assert Image.open(painter / "sample.png").size == (2 * 66, 66)


def test_prompts_for_a_teacher_without(student: Path, distill: Command) -> None:
    result = distill("sample", student, "--prompt", "a cat")
    assert (result.code, result.err) == (2, "distill: prompts: the teacher takes no prompts\n")
    assert not (student / "sample.png").exists()


def test_a_label_and_a_prompt(painter: Path, distill: Command) -> None:
    result = distill("sample", painter, "--prompt", "a cat", "--label", 0)
    assert (result.code, result.err) == (2, "distill: label: 0 is not a class; allowed: none\n")


def test_without_an_autoencoder(painter: Path, distill: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of channels, and a line that says so; evaluation is refused."""
    trained = load_trained(painter)
    for denoiser in (trained.teacher, cast(Any, trained.model).denoiser):
        assert denoiser.network.autoencoder is not None
        denoiser.network.autoencoder = None
    monkeypatch.setattr("trainers.runs.load.load_trained", lambda *arguments, **options: trained)
    result = distill("sample", painter, "--count", 2, "--out", "a.png")
    assert result.err == (
        "these pictures are of latents, their first 3 channels: a vae/ in the teacher's folder decodes them\n"
    )
    assert Image.open("a.png").size == (10 * 66, 66)
    result = distill("evaluate", painter)
    line = "evaluation: judges pixels, the teacher's samples are latents and have no decoder"
    assert (result.code, result.err) == (2, f"distill: {line}\n")
