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


def test_another_size(painter: Path, student: Path, distill: Command) -> None:
    """A network of convolutions draws any size; what cannot be is said in one line."""
    assert load_trained(painter).sample(2, size=(16, 32)).shape == (2, 3, 16, 32)
    result = distill("sample", painter, "--count", 2, "--size", "32x16", "--separate", "--out", "tall")
    assert result.code == 0 and Image.open("tall/000000.png").size == (16, 32)
    for model, size, line in (
        (painter, "32", "--size: must be like 832x1216, got '32'"),
        (painter, "0x8", "--size: must be like 832x1216, got '0x8'"),
        (painter, "16x33", "size: StableDiffusion takes multiples of 2 pixels alone"),
        (student, "16x16", "size: UNet takes samples of one size alone"),
    ):
        result = distill("sample", model, "--size", size)
        assert (result.code, result.err) == (2, f"distill: {line}\n")


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
    for module in ("load", "bare_model"):
        monkeypatch.setattr(f"trainers.runs.{module}.load_trained", lambda *arguments, **options: trained)
    result = distill("sample", painter, "--count", 2, "--out", "a.png")
    assert result.err == (
        "these pictures are of latents, their first 3 channels: a vae/ in the teacher's folder decodes them\n"
    )
    assert Image.open("a.png").size == (10 * 66, 66)
    result = distill("evaluate", painter)
    line = "evaluation: judges pixels, the teacher's samples are latents and have no decoder"
    assert (result.code, result.err) == (2, f"distill: {line}\n")


def test_a_teachers_folder_and_an_export(teachers: Path, student: Path, distill: Command, tmp_path: Path) -> None:
    """Neither is written to. A sampler goes with a teacher, and a generator takes one evaluation."""
    before = sorted(path.name for path in (teachers / "null").iterdir())
    sampler = ("--sampler", "{name: ddim, eta: 1}", "--evaluations", 3, "--cfg", 2, "--cfg-interval", 0.1, 5)
    result = distill("sample", teachers / "null", *sampler, "--count", 3)
    assert (result.code, result.out) == (0, "3 samples: sample.png\n")
    assert sorted(path.name for path in (teachers / "null").iterdir()) == before
    load_trained(student).export(tmp_path / "exported", "safetensors")
    result = distill("sample", tmp_path / "exported", "--count", 3, "--out", "export.png")
    assert (result.code, result.out) == (0, "3 samples: export.png\n")
    result = distill("sample", student, "--count", 3, "--out", "run.png")
    assert np.array_equal(np.array(Image.open("run.png")), np.array(Image.open("export.png")))
    for place in (student, tmp_path / "exported"):
        refused = distill("sample", place, "--sampler", "euler")
        assert refused.code and "--sampler: a generator takes one evaluation and no guidance" in refused.err
    load_trained(student).export(tmp_path / "diffusers")
    refused = distill("sample", tmp_path / "diffusers")
    assert refused.code and "this export is for other software" in refused.err


def test_the_teacher_of_a_run_by_another_sampler(student: Path, distill: Command) -> None:
    pictures = []
    for options in ((), ("--sampler", "euler", "--evaluations", 3), ("--evaluations", 36)):
        result = distill("sample", student, "--teacher", "--count", 2, "--out", "one.png", *options)
        assert result.code == 0, result.err
        pictures.append(np.array(Image.open("one.png")))
    assert not np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])
    refused = distill("sample", student, "--teacher", "--sampler", "eulr")
    assert refused.code and "--sampler: must be one of" in refused.err and "euler" in refused.err
    refused = distill("sample", student, "--teacher", "--cfg", 2)
    assert refused.code and "the teacher states no null condition" in refused.err
    refused = distill("sample", student, "--teacher", "--cfg-rescale", 0.5)
    assert refused.code and "--cfg-interval, --cfg-rescale: go with --cfg" in refused.err


def test_a_pipeline_is_guided_by_prompts(pipelines: Callable[[str], Path], distill: Command) -> None:
    pictures = []
    for options in ((), ("--cfg", 5), ("--cfg", 5, "--negative-prompt", "a blue hat")):
        arguments = ("--prompt", PROMPTS[0], "--sampler", "unipc", "--evaluations", 3, *options)
        result = distill("sample", pipelines("sd15"), *arguments)
        assert (result.code, result.out) == (0, "1 samples: sample.png\n"), result.err
        pictures.append(np.array(Image.open("sample.png")).astype(int))
    assert all((pictures[a] != pictures[b]).any() for a, b in ((0, 1), (1, 2), (0, 2)))
    refused = distill("sample", pipelines("sd15"))
    assert refused.code and "has no prompts of its own" in refused.err
