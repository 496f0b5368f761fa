"""A diffusers pipeline's folder, as `save_pretrained` writes it, as a teacher.

Its own files say everything: the class of the pipeline which family it is, the scheduler's config the path and what the
network predicts, the configs of network and autoencoder the shape. diffusers' own classes read them, defaults included,
so that nothing is guessed. Two things may be chosen, in `distill.json` beside them (DEFAULTS).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from distill.denoiser import Denoiser
from distill.errors import UserError, one_line
from distill.paths import DiscreteVP, Flow
from distill.paths import Path as NoisePath
from distill.prediction import Kind
from distill.teachers.families import DDPM, FAMILIES, Family

INDEX, CHOICES = "model_index.json", "distill.json"
DEFAULTS: dict[str, Any] = {"resolution": None, "guidance": None}
"""`resolution`: height and width of an image in pixels; null: what the pipeline makes by default. `guidance`: the scale
that a network with guidance embedded (FLUX.1-dev) is told; null: 3.5, the pipeline's default."""
KEPT = (".json", ".safetensors", ".txt", ".model")  # weights, configs and the files of tokenizers
PREDICTIONS: dict[str, Kind] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


def load_pipeline(folder: str | Path, weights: bool = True) -> Denoiser:
    """The denoiser of a pipeline folder, float32, in eval mode; on the meta device without its `weights`.

    Raises UserError for other pipelines, schedulers and networks, and for weights that are not safetensors.
    """
    folder = Path(folder)
    index = read_json(folder / INDEX)
    family = family_of(folder)
    try:
        network = family(load_part(folder, family.part, (family.network,), weights), **_chosen(folder, family))
    except UserError as error:
        raise UserError(f"teacher: '{folder}': {error}") from error
    path, prediction = read_scheduler(part(folder, "scheduler") / "scheduler_config.json", _class(index, "scheduler"))
    return Denoiser(network, path, prediction, latents=isinstance(network, Family)).eval()


def download(name: str) -> Path:
    """The folder of a pipeline of the hub, with its safetensors; raises UserError when it cannot be had."""
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(name, use_safetensors=True))
    except Exception as error:  # no network, no such model, no permission, no id at all, no safetensors
        raise UserError(f"import: '{name}' is no folder, nor a model of the hub: {one_line(error)}") from error


def copy_pipeline(source: Path, folder: Path, **choices: Any) -> None:
    """Copy the parts of a pipeline to `folder`, with what is chosen of DEFAULTS; nothing that could run code."""
    parts = [name for name, held in read_json(source / INDEX).items() if isinstance(held, list)]
    places = [name for name in parts if (source / name).is_dir()] or ["."]  # the earliest keep all parts in one folder
    for file in (file for place in places for file in (source / place).iterdir() if file.suffix in KEPT):
        copy = folder / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    shutil.copyfile(source / INDEX, folder / INDEX)
    if chosen := {name: value for name, value in choices.items() if value is not None}:
        (folder / CHOICES).write_text(json.dumps(chosen, indent=2) + "\n")


def copy_autoencoder(source: str, folder: Path) -> None:
    """Copy an autoencoder to `folder`: a folder's, a pipeline's `vae/`, or either of the hub by id."""
    root = Path(source)
    if not root.is_dir():
        from huggingface_hub import snapshot_download

        weights = "diffusion_pytorch_model*.safetensors*"
        wanted = ["config.json", weights, "vae/config.json", f"vae/{weights}"]
        try:
            root = Path(snapshot_download(source, allow_patterns=wanted))
        except Exception as error:  # no network, no such model, no permission, no id at all
            raise UserError(f"import: '{source}' is no folder, nor a model of the hub: {one_line(error)}") from error
    root = part(root, "vae")
    if not (root / "config.json").is_file() or not any(root.glob("*.safetensors")):
        raise UserError(f"import: '{source}' holds no autoencoder: a config.json and .safetensors weights")
    folder.mkdir(parents=True)
    for file in root.iterdir():
        if file.suffix in (".json", ".safetensors"):
            shutil.copyfile(file, folder / file.name)


def family_of(folder: Path) -> type[Family] | type[DDPM]:
    """The family of a pipeline folder; raises UserError when there is none."""
    name = read_json(folder / INDEX).get("_class_name")
    if name not in FAMILIES:
        raise UserError(f"teacher: '{folder}': pipeline must be one of {', '.join(FAMILIES)}, got {name!r}")
    return FAMILIES[name]


def denoiser_files(folder: Path) -> list[Path]:
    """The files that make the denoiser, and not those of text encoders and autoencoders."""
    parts = [part(folder, "scheduler"), part(folder, family_of(folder).part)]
    found = [*(folder / name for name in (INDEX, CHOICES)), *(f for p in parts for f in sorted(p.iterdir()))]
    return [file for file in dict.fromkeys(found) if file.suffix in (".json", ".safetensors") and file.is_file()]


def read_scheduler(file: Path, name: Any) -> tuple[NoisePath, Kind]:
    """The path and the prediction kind of a scheduler's config; `name` is its class in diffusers.

    Raises UserError for what is no Gaussian path with one of our predictions.
    """
    import diffusers

    config = read_json(file)
    try:
        if not str(name).endswith("Scheduler"):
            raise UserError("is no scheduler")
        scheduler = getattr(diffusers, name).from_config(config)
        settings = scheduler.config
    except Exception as error:  # diffusers raises its own kinds for each flaw of a config
        raise UserError(f"teacher: '{file}': {name}: {one_line(error)}") from error
    predicted = settings.get("prediction_type")
    if hasattr(scheduler, "shift") or predicted == "flow_prediction":  # a shift moves a sampler's times, not the path
        return Flow(), "velocity"
    if predicted not in PREDICTIONS or not hasattr(scheduler, "betas"):
        raise UserError(
            f"teacher: '{file}': prediction_type must be one of {', '.join([*PREDICTIONS, 'flow_prediction'])} under"
            f" betas, got {predicted!r} of {name}"
        )
    plain = settings["trained_betas"] is None and not settings.get("rescale_betas_zero_snr")
    if plain and settings["beta_schedule"] in ("linear", "scaled_linear"):
        keys = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")
        return DiscreteVP(*(settings[key] for key in keys)), PREDICTIONS[predicted]
    path = DiscreteVP(betas=tuple(scheduler.betas.double().tolist()))
    if predicted == "epsilon" and not path.alphas_cumprod[-1] > 0:
        raise UserError(f"teacher: '{file}': noise cannot be predicted where no signal is left (zero terminal SNR)")
    return path, PREDICTIONS[predicted]


def load_part(folder: Path, name: str, allowed: tuple[str, ...], weights: bool = True) -> Any:
    """A component of the pipeline that is a model of diffusers of an `allowed` class, float32, in eval mode; on the
    meta device without its `weights`.

    Raises UserError when it is missing, damaged or another.
    """
    place, kind = part(folder, name), _class(read_json(folder / INDEX), name)
    return load_model(place, kind, name, allowed) if weights else outline(place, kind)


def outline(place: Path, kind: str) -> Any:
    """The model of diffusers of class `kind` whose config.json is in the folder `place`, on the meta device."""
    import diffusers
    import torch

    try:
        with torch.device("meta"):
            return getattr(diffusers, kind).from_config(read_json(place / "config.json")).eval()
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise UserError(f"cannot read '{place}' ({kind}): {one_line(error)}") from error


def load_model(place: Path, kind: Any, name: str, allowed: tuple[str, ...]) -> Any:
    """The model of diffusers in the folder `place`, of class `kind`; see `load_part`."""
    import diffusers
    import torch

    if kind not in allowed:
        raise UserError(f"{name} must be {' or '.join(allowed)}, got {kind!r}")
    if not any(place.glob("*.safetensors")):  # diffusers would go on to a pickle, which may run code
        raise UserError(f"cannot read '{place}': it holds no .safetensors file")
    try:
        model, info = getattr(diffusers, kind).from_pretrained(
            place, output_loading_info=True, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    except Exception as error:  # diffusers, safetensors and torch each raise their own kinds for a damaged folder
        raise UserError(f"cannot read '{place}' ({kind}): {one_line(error)}") from error
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if wrong:
        raise UserError(f"the weights in '{place}' do not fit their config, first at {wrong[0]}")
    return model.eval()


def _chosen(folder: Path, family: type[Family] | type[DDPM]) -> dict[str, Any]:
    """Arguments of a family beside its network."""
    choices = read_json(folder / CHOICES) if (folder / CHOICES).is_file() else {}
    if unknown := choices.keys() - DEFAULTS.keys():
        raise UserError(f"{CHOICES}: unknown key {min(unknown)!r}; allowed: {', '.join(DEFAULTS)}")
    for name, value in choices.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
            raise UserError(f"{CHOICES}: {name}: must be positive or null, got {value!r}")
    if not issubclass(family, Family):
        if any(value is not None for value in choices.values()):
            raise UserError(f"{CHOICES}: a network of pixels has no choice of resolution or guidance")
        return {}
    factor = compression(folder)
    resolution, guidance = choices.get("resolution"), choices.get("guidance")
    if resolution is not None and resolution % factor:
        raise UserError(f"{CHOICES}: resolution: must be a multiple of {factor}, got {resolution}")
    chosen: dict[str, Any] = {"factor": factor, "side": None if resolution is None else resolution // factor}
    return chosen if guidance is None else chosen | {"guidance": guidance}


def compression(folder: Path) -> int:
    """Pixels to a side of one latent."""
    config = read_json(part(folder, "vae") / "config.json")
    blocks = config.get("block_out_channels") or config.get("encoder_block_out_channels")
    if not isinstance(blocks, list):
        raise UserError(f"cannot read '{part(folder, 'vae')}': its config lists no blocks")
    return int(2 ** (len(blocks) - 1))


def part(folder: Path, name: str) -> Path:
    """The folder of a part; the earliest pipelines keep all parts in one."""
    return folder / name if (folder / name).is_dir() else folder


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; raises UserError for anything else."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"teacher: cannot read '{file}': {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"teacher: cannot read '{file}': it is no JSON object")
    return content


def _class(index: dict[str, Any], name: str) -> Any:
    entry = index.get(name)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
