"""A generator of every family leaves as its own pipeline, which stock diffusers loads and calls."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distill import Condition, Generator, UserError, load_generator
from distill.export import export_generator
from distill.export.export import largest_difference
from distill.export.format import inputs
from distill.export.to_family_pipeline import family_pipeline, is_stock, stock_scheduler
from distill.teachers import load_denoiser
from distill.teachers.families import LatentFamily
from tests.exports import FACTS, OURS, snippet, strangers
from tests.pipelines import PIPELINES

LATENT = [name for name in PIPELINES if not name.startswith("ddpm")]
FLOWS = ("sd3", "flux", "sana")


@pytest.fixture(autouse=True)
def module_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers copies each folder's code to one place of the user's home, which parallel tests must not share."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


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
    form = family_pipeline(generator, Condition(), source)
    form.write(tmp_path / "out")
    assert is_stock(generator) == (on_flow if flow else on_grid)
    assert largest_difference(generator, form, tmp_path / "out") < 1e-4
    other = Generator(generator.denoiser, generator.t, 1.1 * generator.scale)
    assert largest_difference(other, form, tmp_path / "out") > 1e-3


SHOWN = [(name, "unit") for name in LATENT] + [("sd15", "scaled"), ("sd3", "scaled"), ("flux", "unit inside")]


def test_the_cards_snippet_gives_our_images_without_our_packages(
    pipelines: Callable[[str], Path], tmp_path: Path
) -> None:
    cases, ours = {}, {}
    for name, entry in SHOWN:
        case, folder, source = f"{name} {entry}", tmp_path / f"{name} {entry}", pipelines(name)
        t, scale = ENTRIES[entry][0]
        generator = make(source, ((t + 1) / 1000 if name.startswith(FLOWS) else t, scale))
        assert export_generator(generator, folder, FACTS, teacher=source) < 1e-4
        code = snippet(folder)
        assert len(code.splitlines()) == 3 and ("trust_remote_code" in code) == (entry != "unit")
        cases[case] = folder, code.replace("num_inference_steps=1", "num_inference_steps=1, output_type='np'")
        form = family_pipeline(generator, Condition(), source)
        given = inputs(generator, form.cond, batch=2)
        with torch.no_grad():
            ours[case] = form.shown(generator(given.noise, given.cond))
    (tmp_path / "stranger").mkdir()
    drawn = strangers(tmp_path / "stranger", cases, OURS)
    for case, images in ours.items():
        assert float((2 * drawn[case].permute(0, 3, 1, 2) - 1 - images).abs().max()) < 1e-4, case
        assert float(images.std()) > 0.01, case


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_weights_alone_are_read_back(name: str, pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    source = pipelines(name)
    generator = make(source, (1.0, 1.0) if name == "sd3" else (625, None))
    assert export_generator(generator, tmp_path / "out", FACTS, "safetensors", teacher=source) == 0
    loaded = load_generator(tmp_path / "out")
    given = inputs(generator, generator.denoiser.network.example(2), batch=2)
    assert torch.equal(loaded(given.noise, given.cond), generator(given.noise, given.cond))
    assert not list((tmp_path / "out").glob("*/*.txt")) and not (tmp_path / "out" / "text_encoder").exists()
    for name in ("diffusers", "safetensors"):
        with pytest.raises(UserError, match=r"^export: a .* needs its teacher's folder for "):
            export_generator(generator, tmp_path / "other", FACTS, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", LATENT)
@pytest.mark.parametrize("format", ["onnx", "torch-export"])
def test_graphs(format: str, name: str, pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    source = pipelines(name)
    generator = make(source, (1.0, 1.0) if name.startswith(FLOWS) else (625, None))
    assert export_generator(generator, tmp_path / "out", FACTS, format) < 5e-5


def test_schedulers_keep_the_pipelines_betas(pipelines: Callable[[str], Path]) -> None:
    source = pipelines("sd15")
    config = json.loads((source / "scheduler" / "scheduler_config.json").read_text())
    scheduler = stock_scheduler(make(source, (625, None)))
    from diffusers import DDPMScheduler

    stock = DDPMScheduler(**{key: config[key] for key in ("beta_start", "beta_end", "beta_schedule")})
    assert len(scheduler.betas) == 626
    assert float((scheduler.betas - stock.betas[:626]).abs().max() / stock.betas[625]) < 1e-6
    assert isinstance(make(source, (625, None)).denoiser.network, LatentFamily)


def write_checked(pipelines: Callable[[str], Path], folder: Path) -> Path:
    """Write Stable Diffusion with a safety checker that takes every image for unsafe."""
    import diffusers
    import transformers
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    tower: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    tower |= {"num_attention_heads": 2, "projection_dim": 12}
    vision, text = tower | {"image_size": 16, "patch_size": 8}, tower | {"vocab_size": 100}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=12)
    checker = StableDiffusionSafetyChecker(config)
    with torch.no_grad():
        checker.concept_embeds_weights.fill_(-2)
        checker.special_care_embeds_weights.fill_(2)
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    features = transformers.CLIPImageProcessor(**size)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        pipelines("sd15"), safety_checker=checker, feature_extractor=features
    )
    pipe.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("entry", ["pure", "scaled"])
def test_a_safety_checker_is_no_part_of_the_check(entry: str, pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    source = write_checked(pipelines, tmp_path / "sd")
    assert export_generator(make(source, ENTRIES[entry][0]), tmp_path / "out", FACTS, teacher=source) < 1e-4
    assert (tmp_path / "out" / "safety_checker" / "model.safetensors").is_file()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "safety checker is part of the pipeline" in card
    export_generator(make(pipelines("sd15"), ENTRIES[entry][0]), tmp_path / "other", FACTS, teacher=pipelines("sd15"))
    assert "safety checker" not in (tmp_path / "other" / "README.md").read_text()


@pytest.mark.parametrize("t", [999, 998, 997, 990])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_a_start_almost_without_signal_is_exported(
    t: int, scale: float | None, pipelines: Callable[[str], Path], tmp_path: Path
) -> None:
    """A teacher of zero terminal SNR, whose alpha falls to 0 over the last steps."""
    source = shutil.copytree(pipelines("sd21"), tmp_path / "sd21")
    file = source / "scheduler" / "scheduler_config.json"
    settings = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    generator = make(source, (t, scale))
    assert is_stock(generator) == (scale == 1 or t == 999)
    assert export_generator(generator, tmp_path / "out", FACTS, teacher=source) < 1e-5
