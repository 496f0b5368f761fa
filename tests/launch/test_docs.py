"""What the docs tell users to do does what they say."""

from __future__ import annotations

import gzip
import json
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from distill import EDM, Denoiser
from distill.teachers import OwnNet, save_denoiser
from tests.launch.conftest import Command
from tests.tiny import ROOT, recipe
from trainers.data import Images


def block(page: str, language: str) -> str:
    """The first block of code in a language on a page of docs/."""
    found = re.search(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def test_an_objective_of_ones_own(distill: Command, teachers: Path) -> None:
    """add_an_objective.md in a folder of the user's: one file, a recipe, the two commands; on the digits, shorter."""
    Path("my_objective.py").write_text(block("add_an_objective.md", "python"))
    Path("my_recipe.yaml").write_text(block("add_an_objective.md", "yaml"))
    shorter = [f"teacher={teachers / 'edm'}", "images=64", "batch_size=32", "log_every=32", "evaluation.samples=64"]
    for command in block("add_an_objective.md", "sh").splitlines():
        name, *arguments = command.removeprefix("distill ").split()
        result = distill(name, *arguments, *(shorter if name == "train" else []))
        assert result.code == 0, result.err
    log = [json.loads(line) for line in Path("runs/my_fisher/log.jsonl").read_text().splitlines()]
    assert [record["images"] for record in log] == [32, 64]
    assert log[0]["generator/grad_norm"] > 0 and log[-1]["health/gap"] > 0
    assert json.loads(Path("runs/my_fisher/evaluation.json").read_text())["student"]["frechet"] > 0


def write_files(page: str) -> None:
    """The files that a page of docs/ shows: each begins a paragraph by its name, and is the next block of code."""
    text = (ROOT / "docs" / page).read_text()
    for name, content in re.findall(r"^`([\w/]+\.\w+)`.*?```\w+\n(.*?)```", text, re.DOTALL | re.MULTILINE):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content)


def test_a_teacher_of_ones_own(distill: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """add_a_teacher.md in a folder of the user's: its files and its commands, shorter; and its way from Python."""
    write_files("add_a_teacher.md")
    monkeypatch.syspath_prepend(Path.cwd())
    monkeypatch.delitem(sys.modules, "my_teacher", raising=False)
    training = Path("my_training.py")
    training.write_text(training.read_text().replace("updates = 4_000", "updates = 20"))
    shorter = ["images=64", "batch_size=32", "log_every=32", "evaluation.samples=64"]
    python, *commands = block("add_a_teacher.md", "sh").splitlines()
    assert python == "python my_training.py"
    runpy.run_path("my_training.py")
    for command in commands:
        name, *arguments = command.removeprefix("distill ").split()
        result = distill(name, *arguments, *(shorter if name == "train" else []))
        assert result.code == 0, result.err
    teacher, export = Path("teachers/mine"), Path("runs/mine/export-safetensors")
    trained, made = (load_file(folder / "network.safetensors") for folder in (teacher, export))
    assert trained.keys() == made.keys() and not torch.equal(trained["out.weight"], made["out.weight"])
    assert json.loads((export / "denoiser.json").read_text()) == json.loads((teacher / "denoiser.json").read_text())
    card = re.search(r"```python\n(.*?)```", (export / "README.md").read_text(), re.DOTALL)
    assert card is not None
    scope: dict[str, Any] = {}
    monkeypatch.chdir(export.parent)
    exec(card[1], scope)
    assert scope["images"].shape == (8, 1, 8, 8) and scope["images"].isfinite().all()
    monkeypatch.chdir("../..")
    Path("my_weights.safetensors").write_bytes((teacher / "network.safetensors").read_bytes())
    description = json.loads((teacher / "denoiser.json").read_text())
    names = {"load_file": load_file, "save_denoiser": save_denoiser, "OwnNet": OwnNet, "Denoiser": Denoiser, "EDM": EDM}
    exec(block("add_a_teacher.md", "py"), names)
    assert json.loads((teacher / "denoiser.json").read_text()) == description
    again = load_file(teacher / "network.safetensors")
    assert again.keys() == trained.keys() and all(torch.equal(again[key], trained[key]) for key in again)
    sys.modules.pop("my_teacher", None)


def test_lpips_as_a_distance(distill: Command, teachers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """objectives/dmd.md's distance of the user's own, with a stand-in for the package that it downloads."""

    class Stub(torch.nn.Module):
        def __init__(self, net: str) -> None:
            super().__init__()
            assert net == "vgg"

        def forward(self, made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            assert made.shape == target.shape == (2, 3, 224, 224)
            return (made - target).abs().mean((1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Stub))
    Path("my_lpips.py").write_text(block("objectives/dmd.md", "python"))
    perceptual = "{name: dmd, perceptual: 'my_lpips.py:LPIPS'}"
    settings = recipe(
        teachers / "edm", images=4, batch_size=2, objective="dmd", pairs={"folder": str(teachers / "pairs")}
    )
    Path("mine.yaml").write_text(yaml.safe_dump(settings))
    result = distill("train", "mine.yaml", f"objective={perceptual}", "--folder", "run")
    assert result.code == 0, result.err
    assert "my_lpips.py:LPIPS" in Path("run/run.yaml").read_text()


def test_fashion_mnist_from_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fashion_mnist.md turns IDX files, 3 images in place of 60,000, into what `data.path` takes: the same pixels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    for name in ("train", "t10k"):
        Path(f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0" * 16 + pixels.tobytes()))
        Path(f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\0" * 8 + bytes([9, 0, 3])))
    exec(block("fashion_mnist.md", "python"), {})
    for split in ("train", "test"):
        dataset = Images("fashion_mnist", resolution=28, mode="L", split=split).load()
        assert dataset.name == "fashion_mnist" and dataset.labels is not None and dataset.labels.tolist() == [9, 0, 3]
        images = (dataset.images(torch.arange(3)) + 1) * 127.5
        assert np.array_equal(images.round().to(torch.uint8)[:, 0].numpy(), pixels)
