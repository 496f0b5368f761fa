"""The pipelines' own encoders through the cache: every family's conditions; a second run loads no encoder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

from distill.encoders import text_encoder
from distill.encoders.autoencoder import DiffusersAutoencoder
from distill.encoders.text_encoder import PipelineTextEncoder
from distill.teachers import load_denoiser
from tests.clip_texts import Clip, write_clip
from tests.tiny import ROOT, environment, experiment, fit_run, recipe
from trainers.data import Dataset
from trainers.data.batches import condition_at
from trainers.data.dataset import UNKNOWN
from trainers.data.encode import DatasetEncoder
from trainers.runs.load import load_trained

CPU = torch.device("cpu")
EMOJI = ROOT / "tests" / "golden" / "emoji.parquet"
PROMPTS = ["a cat", "dogs", "a cat"]
FAMILIES = ["sd15", "sdxl", "pixart_alpha", "sd3", "flux", "sana"]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written outside of tmp_path, nothing is asked of the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def unused(*arguments: Any, **named: Any) -> Any:
    raise AssertionError("an encoder is loaded")


@pytest.mark.parametrize("name", FAMILIES)
def test_conditions_are_those_of_the_pipeline(
    name: str, pipelines: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, dataset = pipelines(name), Dataset("words", 3, UNKNOWN, None, None, prompts=PROMPTS)

    def encode_dataset(negative: str | None = None) -> tuple[Any, Any]:
        teacher = load_denoiser(folder)
        ready = DatasetEncoder(str(tmp_path / "cache"), CPU, negative).encode(dataset, teacher, real=False)
        assert ready.shape == teacher.network.shape
        return condition_at(ready, torch.tensor([1, 2])), teacher

    cond, teacher = encode_dataset()
    direct = PipelineTextEncoder(folder, type(teacher.network))
    expected, null, negative = direct.encode(["dogs", "a cat"]), direct.encode_null(), direct.encode(["blurry"])
    assert cond.keys() == teacher.network.null.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.allclose(cond[key], value, atol=1e-5) and cond[key].dtype == value.dtype
        assert torch.equal(teacher.network.null[key], null[key][0])
        assert teacher.null(cond)[key].shape == value.shape
    encode_dataset("blurry")
    monkeypatch.setattr(text_encoder, "load_stock_pipeline", unused)
    again, teacher = encode_dataset("blurry")
    for key in expected:
        assert torch.equal(again[key], cond[key]) and torch.equal(teacher.network.null[key], negative[key][0])
    x0 = teacher(torch.randn(2, *teacher.network.shape), torch.full((2,), 0.5), again)
    assert x0.isfinite().all()


def test_a_run_on_prompts_and_latents(
    pipelines: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stable Diffusion under DMD2, on real images: trained, exported, resumed and sampled; then from the cache."""
    data = {"name": "images", "path": str(EMOJI), "resolution": 16, "prompt_column": "text"}
    run = experiment(
        recipe(
            pipelines("sd15"),
            data=data,
            objective={"name": "guided", "teacher_cfg": 2.0, "objective": {"name": "dmd2", "tap": "middle"}},
            cache=str(tmp_path / "cache"),
            images=4,
            batch_size=2,
            checkpoint_every=2,
        )
    )
    session = fit_run(run, tmp_path / "run")
    assert all(player.counters()["skipped"] == 0 for player in session.state.players.values())
    real = session.batches.micro("fake", 0, 0).real
    decoder = None if session.teacher is None else session.teacher.network.autoencoder
    assert real is not None and real.shape == (2, 4, 8, 8) and decoder is not None
    picture = Image.open(tmp_path / "run/samples" / f"{4:012d}.png")
    assert picture.mode == "RGB" and picture.size == (10 * (64 + 2), 6 * (64 + 2))  # 16 pixels, 4 times as large
    product = load_trained(tmp_path / "run")
    for name in ("diffusers", "safetensors", "torch-export"):
        assert product.export(tmp_path / name, name) < 1e-4
    shutil.rmtree(tmp_path / "run/checkpoints" / f"{4:012d}")
    monkeypatch.setattr(text_encoder, "load_stock_pipeline", unused)
    monkeypatch.setattr(DiffusersAutoencoder, "encode", unused)
    resumed = fit_run(run, tmp_path / "run", resume=True)
    for name, value in session.state.ema.module.state_dict().items():
        assert torch.equal(value, resumed.state.ema.module.state_dict()[name])
    assert load_trained(tmp_path / "run").dataset.shape == (4, 8, 8)


def test_latents_are_the_autoencoders(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    pixels = torch.rand(5, 3, 16, 16) * 2 - 1
    dataset = Dataset("noise", 5, (3, 16, 16), None, lambda at: pixels[at], prompts=["x"] * 5)
    teacher = load_denoiser(pipelines("sd15"))
    ready = DatasetEncoder(str(tmp_path / "cache"), CPU).encode(dataset, teacher, real=True)
    coder, at = teacher.network.autoencoder, torch.tensor([3, 0])
    assert coder is not None and ready.spread is not None
    mean, std = coder.encode(pixels[at])
    assert torch.allclose(ready.images(at), mean, atol=1e-5) and torch.allclose(ready.spread(at), std, atol=1e-5)
    assert float(std.min()) > 0


# A text encoder of transformers

CLIP = """
import json, sys, torch
from pathlib import Path
from tests.clip_texts import Clip
from tests.texts import TextNet
from trainers.data import Dataset
from trainers.data.batches import condition_at
from trainers.data.dataset import UNKNOWN
from trainers.data.encode import DatasetEncoder
from distill.denoiser import Denoiser
from distill.paths import EDM

prompts = ["a cat", "a photo of a dog", "a cat"]
encoder = Clip(Path(sys.argv[1]))
teacher = Denoiser(TextNet((1, 8, 8), encoder), EDM(), "edm")
dataset = Dataset("words", 3, UNKNOWN, None, None, prompts=prompts)
ready = DatasetEncoder(sys.argv[2], torch.device("cpu")).encode(dataset, teacher, real=False)
rows = condition_at(ready, torch.arange(3))
own = {"prompt": torch.stack([rows["prompt"][n] for n in range(3)]), "null": teacher.network.null["prompt"]}
modules = [name for name in ("transformers", "diffusers", "tokenizers") if name in sys.modules]
torch.save(own, sys.argv[3])
print(json.dumps({"modules": modules, "loaded": encoder.loaded}))
"""


@torch.no_grad()
def test_a_second_run_loads_no_encoder(tmp_path: Path) -> None:
    """CLIP's text model: what is cached is what it gives; then the cache is read without importing transformers."""
    write_clip(tmp_path / "clip")
    reports, rows = [], []
    for number in range(2):
        out = tmp_path / f"rows{number}.pt"
        command = [sys.executable, "-c", CLIP, str(tmp_path / "clip"), str(tmp_path / "cache"), str(out)]
        done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=True)
        reports.append(json.loads(done.stdout))
        rows.append(torch.load(out, weights_only=True))
    assert reports[0]["modules"] == ["transformers", "tokenizers"] and not reports[0]["loaded"]
    assert reports[1] == {"modules": [], "loaded": False}
    assert all(torch.equal(rows[0][name], rows[1][name]) for name in rows[0])
    encoder = Clip(tmp_path / "clip")
    direct = encoder.encode(["a cat", "a photo of a dog"])["prompt"]
    assert torch.allclose(rows[0]["prompt"], direct[[0, 1, 0]], atol=1e-6)
    assert torch.equal(rows[0]["null"], encoder.encode([""])["prompt"][0])
    assert float((direct[0] - direct[1]).abs().max()) > 0.01
