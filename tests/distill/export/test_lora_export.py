"""Adapters alone: stock pipelines load them and compute our generator."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file

from distill import Generator, UserError, lora
from distill.export import CardFacts, export_generator
from distill.pipeline_folder import load_stock_pipeline
from distill.teachers import load_denoiser
from launch.commands.export import export
from tests.tiny import ADAPTERS, fit_run, launch, recipe, tiny_denoiser
from trainers.runs.load import load_trained

FACTS = CardFacts(
    name="n", objective={"name": "sid"}, teacher="t", teacher_sha256="0", images=1, average="", metrics=None,
    versions={}, recipe="",
)  # fmt: skip
ATTENTION = lora.Lora(rank=2, alpha=2, targets=("to_q", "to_out.0"))


def adapted(generator: Generator, settings: lora.Lora) -> Generator:
    """With adapters that have moved."""
    lora.attach(generator.denoiser.network, settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in generator.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return generator.requires_grad_(False).eval()


@pytest.mark.parametrize(
    ("name", "settings", "t"),  # of a flow at 1 and on a grid a stock scheduler takes the step
    [
        ("sd15", lora.Lora(rank=4, alpha=6), 625),
        ("sd15", ATTENTION, 999),
        ("sdxl", lora.Lora(rank=4, alpha=6), 399),
        ("sd3", lora.Lora(rank=4, alpha=6), 0.7),
        ("flux", lora.Lora(rank=4, alpha=6), 1),
        ("sana", lora.Lora(rank=4, alpha=6), 0.7),
    ],
)
def test_stock_pipelines_load_the_adapters(
    name: str, settings: lora.Lora, t: float, pipelines: Callable[[str], Path], tmp_path: Path
) -> None:
    teacher, out = pipelines(name), tmp_path / "out"
    plain, generator = (Generator(load_denoiser(teacher), t, 1.0) for _ in range(2))
    adapted(generator, settings)
    assert export_generator(generator, out, FACTS, "lora", teacher=teacher) < 1e-5
    assert (out / "scheduler").is_dir() == (t >= 1)
    network: Any = plain.denoiser.network
    file = load_file(out / "pytorch_lora_weights.safetensors")
    assert all(key.startswith(f"{network.part}.") and ".lora_" in key for key in file)
    z, cond = torch.randn(2, *network.shape), network.example(2)
    with torch.no_grad():
        before = plain(z, cond)
        pipe = load_stock_pipeline(teacher)
        pipe.load_lora_weights(out)
        network.model = getattr(pipe, network.part)
        lora.merge(generator.denoiser.network)
        ours = generator(z, cond)
        assert float((ours - before).abs().max()) > 0.01
        assert float((ours - plain(z, cond)).abs().max()) < 1e-4


def test_the_cards_lines_draw_our_images(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    """With the teacher's folder in its place, in a process without our packages."""
    generator = adapted(Generator(load_denoiser(pipelines("sd15")), 625, 1.0), ATTENTION)
    export_generator(generator, tmp_path / "out", FACTS, "lora", teacher=pipelines("sd15"))
    code = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.S)[0]
    code = code.replace('"TEACHER"', repr(str(pipelines("sd15")))) + "assert len(images) == 2\n"
    blocked = "import sys\nsys.modules.update(dict.fromkeys(('distill', 'trainers', 'launch')))\n"
    (tmp_path / "card.py").write_text(blocked + code)
    job = launch([str(tmp_path / "card.py")], tmp_path / "output.txt", cwd=tmp_path)
    assert job.finish() == 0, job.text


def test_refusals(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^export: --format lora is for generators with adapters"):
        export_generator(Generator(load_denoiser(pipelines("sd15")), 625), tmp_path / "out", FACTS, "lora")
    for denoiser, kind in ((tiny_denoiser(), "UNet"), (load_denoiser(pipelines("pixart_alpha")), "PixArt")):
        generator = adapted(Generator(denoiser, 2), lora.Lora(rank=2))
        with pytest.raises(UserError, match=rf"^export: diffusers loads no adapters into {kind}; give another"):
            export_generator(generator, tmp_path / "out", FACTS, "lora")
    assert not (tmp_path / "out").exists()


def test_a_run_of_adapters_leaves_as_adapters(
    pipelines: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From prompts to a stock pipeline with our adapters, through the command and from Python."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    settings = recipe(
        pipelines("sd15"),
        data={"name": "prompts", "path": str(tmp_path / "prompts.txt")},
        generator=ADAPTERS,
        fake=ADAPTERS,
        gradient_checkpointing=True,
        cache=str(tmp_path / "cache"),
        entry={"t": 625},
        images=16,
        checkpoint_every=16,
        samples_every=16,
    )
    fit_run(settings, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", format="lora")
    assert json.loads((tmp_path / "out" / "export_check.json").read_text())["largest_difference"] < 1e-4
    trained, pipe = load_trained(tmp_path / "run"), load_stock_pipeline(pipelines("sd15"))
    assert trained.export(tmp_path / "python", format="lora") < 1e-4
    files = [(tmp_path / name / "pytorch_lora_weights.safetensors").read_bytes() for name in ("out", "python")]
    assert files[0] == files[1]
    pipe.load_lora_weights(tmp_path / "out")
    ours: Any = trained.model.denoiser.network  # type: ignore[union-attr]
    x, time, cond = torch.randn(2, *ours.shape), torch.full((2,), 625.0), ours.example(2)
    with torch.no_grad():
        expected, ours.model = ours(x, time, cond), pipe.unet
        assert float((ours(x, time, cond) - expected).abs().max()) < 1e-4
