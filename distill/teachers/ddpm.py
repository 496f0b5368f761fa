"""Unconditional and class-conditional DDPM pipelines of diffusers (a UNet2DModel on a grid of steps) as teachers.

The scheduler that was saved with the network says everything: the betas and what the network predicts. diffusers' own
classes read its config, defaults included, so that nothing is guessed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distill.denoiser import Denoiser
from distill.errors import UserError, one_line
from distill.paths import DiscreteVP
from distill.prediction import Kind
from distill.teachers.unet import load_unet

PIPELINES = ("DDPMPipeline", "DDIMPipeline")
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")
PREDICTIONS: dict[str, Kind] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


def read_ddpm(source: str) -> Denoiser:
    """The denoiser of a pipeline folder, or of a model of the hub, float32, in eval mode.

    Raises UserError for other pipelines, schedulers and networks, and for weights that are not safetensors.
    """
    folder = Path(source) if Path(source).is_dir() else _download(source)
    index = _read(folder / "model_index.json")
    for part, given, allowed in (
        ("pipeline", index.get("_class_name"), PIPELINES),
        ("unet", _class(index, "unet"), ("UNet2DModel",)),
        ("scheduler", _class(index, "scheduler"), SCHEDULERS),
    ):
        if given not in allowed:
            raise UserError(f"import: '{source}': {part} must be {' or '.join(allowed)}, got {given!r}")
    network = load_unet(_part(folder, "unet")).float()
    config = network.unet.config
    if config["out_channels"] != config["in_channels"]:
        raise UserError(f"import: '{source}': the network must give as many channels as it takes, no variances")
    if config["class_embed_type"] is not None:
        raise UserError(f"import: '{source}': class_embed_type must be null, got {config['class_embed_type']!r}")
    path, prediction = _read_scheduler(_part(folder, "scheduler") / "scheduler_config.json", _class(index, "scheduler"))
    return Denoiser(network, path, prediction).eval()


def _read_scheduler(file: Path, name: Any) -> tuple[DiscreteVP, Kind]:
    import diffusers

    config = _read(file)
    try:
        scheduler = getattr(diffusers, name).from_config(config)
        settings = scheduler.config
        prediction = PREDICTIONS[settings["prediction_type"]]
        plain = settings["trained_betas"] is None and not settings["rescale_betas_zero_snr"]
        if plain and settings["beta_schedule"] in ("linear", "scaled_linear"):
            keys = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")
            return DiscreteVP(*(settings[key] for key in keys)), prediction
        path = DiscreteVP(betas=tuple(scheduler.betas.double().tolist()))
    except Exception as error:  # diffusers raises its own kinds for each flaw of a config
        raise UserError(f"import: '{file}': {type(error).__name__}: {one_line(error)}") from error
    if prediction == "eps" and not path.alphas_cumprod[-1] > 0:
        raise UserError(f"import: '{file}': noise cannot be predicted where no signal is left (zero terminal SNR)")
    return path, prediction


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # no network, no such model, no permission, no id at all
        raise UserError(f"import: '{name}' is no folder, nor a model of the hub: {one_line(error)}") from error


def _part(folder: Path, name: str) -> Path:
    """The folder of a part; the earliest pipelines keep all parts in one."""
    return folder / name if (folder / name).is_dir() else folder


def _class(index: dict[str, Any], part: str) -> Any:
    entry = index.get(part)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else entry


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"import: cannot read '{file}': {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"import: cannot read '{file}': it is no JSON object")
    return content
