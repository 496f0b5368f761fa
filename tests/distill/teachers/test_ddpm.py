"""A DDPM pipeline of diffusers becomes the teacher that its own scheduler computes with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distill import Condition, UserError
from distill.teachers import copy_pipeline, download, load_denoiser, load_pipeline, save_denoiser
from tests.distill.teachers.test_unet import CONFIG, LABELLED, LABELS, X


def save_pipeline(folder: Path, config: dict[str, Any], **settings: Any) -> Any:
    """A pipeline of random weights; returns its scheduler."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    scheduler = DDPMScheduler(clip_sample=False, **settings)
    DDPMPipeline(UNet2DModel(**config), scheduler).save_pretrained(folder)
    return scheduler


SCHEDULERS: dict[str, dict[str, Any]] = {
    "ddpm": {},
    "scaled": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 500},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "trained": {"trained_betas": [0.1, 0.2, 0.4], "num_train_timesteps": 3},
    "zero": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    "v": {"prediction_type": "v_prediction"},
    "x0": {"prediction_type": "sample"},
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_x0_is_the_schedulers(name: str, tmp_path: Path) -> None:
    scheduler = save_pipeline(tmp_path / "pipeline", LABELLED, **SCHEDULERS[name])
    denoiser = load_pipeline(tmp_path / "pipeline")
    save_denoiser(denoiser, tmp_path / "teacher")
    loaded = load_denoiser(tmp_path / "teacher")
    last = scheduler.config.num_train_timesteps - 1
    for t in sorted({0, 1, last // 2, last - 1, last}):
        steps = torch.full((3,), float(t))
        output = denoiser.network(X, steps, Condition(labels=LABELS))
        theirs = scheduler.step(output, t, X).pred_original_sample
        ours = denoiser(X, steps, LABELS)
        assert float((ours - theirs).detach().abs().max() / theirs.detach().abs().max()) < 1e-5
        assert torch.equal(loaded(X, steps, LABELS), ours)


def test_all_parts_in_one_folder_and_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pipeline(tmp_path / "new", CONFIG)
    exact = load_pipeline(tmp_path / "new")
    old = tmp_path / "old"
    old.mkdir()
    for file in (tmp_path / "new").rglob("*.*"):
        (old / file.name).write_bytes(file.read_bytes())
    (old / "run.py").write_text("")
    asked: list[tuple[str, dict[str, bool]]] = []

    def fetch(name: str, **settings: bool) -> str:
        asked.append((name, settings))
        return str(old)

    monkeypatch.setattr("diffusers.DiffusionPipeline.download", fetch)
    copy_pipeline(download("google/ddpm-cifar10-32"), tmp_path / "copy")
    assert asked == [("google/ddpm-cifar10-32", {"use_safetensors": True})]
    found = load_denoiser(tmp_path / "copy")
    assert torch.equal(found(X, torch.full((3,), 9.0)), exact(X, torch.full((3,), 9.0)))
    assert not (tmp_path / "copy" / "run.py").exists()


def edit(file: str, **changes: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, **changes}))

    return change


MISTAKES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pipeline": (
        edit("model_index.json", _class_name="StableDiffusionPipeline"),
        "unet must be UNet2DConditionModel, got 'UNet2DModel'",
    ),
    "no family": (edit("model_index.json", _class_name="os.system"), "pipeline must be one of DDPMPipeline, DDIMPipe"),
    "network": (
        edit("model_index.json", unet=["diffusers", "UNet1DModel"]),
        "unet must be UNet2DModel, got 'UNet1DModel'",
    ),
    "scheduler": (
        edit("model_index.json", scheduler=["diffusers", "ScoreSdeVeScheduler"]),
        "... (21 in all), got 'ScoreSdeVeScheduler'",
    ),
    "index": (
        lambda folder: (folder / "model_index.json").write_text("{"),
        "model_index.json' is damaged: it is no JSON: EOF",
    ),
    "no index": (lambda folder: (folder / "model_index.json").unlink(), "model_index.json' is missing"),
    "prediction": (
        edit("scheduler/scheduler_config.json", prediction_type="score"),
        "sample, flow_prediction under betas, got 'score'",
    ),
    "schedule": (edit("scheduler/scheduler_config.json", beta_schedule="cubic"), "DDPMScheduler: cubic is not"),
    "eps at no signal": (
        edit("scheduler/scheduler_config.json", rescale_betas_zero_snr=True),
        "noise cannot be predicted where no signal is left",
    ),
    "labels": (
        edit("unet/config.json", class_embed_type="identity", num_class_embeds=None),
        "class_embed_type must be",
    ),
    "a pickle": (
        lambda folder: next(folder.glob("unet/*.safetensors")).rename(folder / "unet/diffusion_pytorch_model.bin"),
        "it holds no .safetensors file",
    ),
}


@pytest.mark.parametrize("how", MISTAKES)
def test_mistakes(how: str, tmp_path: Path) -> None:
    save_pipeline(tmp_path / "pipeline", CONFIG)
    change, message = MISTAKES[how]
    change(tmp_path / "pipeline")
    with pytest.raises(UserError) as error:
        load_pipeline(tmp_path / "pipeline")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_variances_and_unknown_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pipeline(tmp_path / "pipeline", CONFIG | {"out_channels": 4})
    with pytest.raises(UserError, match=r"as many channels as it takes, no variances$"):
        load_pipeline(tmp_path / "pipeline")
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("no/such-model", "/no/such/folder"):
        with pytest.raises(UserError, match=rf"^import: '{name}' is no folder, nor a model of the hub: [^\n]+$"):
            download(name)
