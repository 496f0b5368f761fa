"""The folder of a diffusers pipeline, as `save_pretrained` writes it, as a teacher.

The folder's own files describe the teacher. The class of the pipeline says which family it belongs to. The scheduler's
config says the path and the quantity that the network predicts. The configs of the network and of the autoencoder say
the shape of a sample. diffusers' own classes read these configs, so that their defaults are right. The user may choose
two more settings in `distill.json` beside them (see KEYS).
"""

import json
import shutil
from pathlib import Path
from typing import Any

from distill.denoiser import Denoiser
from distill.encoders.text_encoder import PipelineTextEncoder
from distill.errors import UserError, one_line
from distill.paths import DiscreteVP, Flow
from distill.paths import Path as NoisePath
from distill.pipeline_folder import INDEX, class_name, load_model, meta_model, part_folder, read_json
from distill.prediction import Kind
from distill.teachers.families import FAMILIES, Family

CHOICES = "distill.json"
KEYS = ("resolution", "guidance")
"""The keys of `distill.json`, where null means the pipeline's default.

`resolution` is the size of an image in pixels, as [height, width] or one number for a square. `guidance` is the scale
that a network with embedded guidance (FLUX.1-dev) takes as an input, by default 3.5.
"""
COPIED = (".json", ".safetensors", ".txt", ".model")  # weights, configs and the files of tokenizers
PREDICTIONS: dict[str, Kind] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


def load_pipeline(folder: str | Path, weights: bool = True) -> Denoiser:
    """Load the denoiser of a pipeline folder, in float32 and eval mode.

    Args:
        folder: The folder with model_index.json.
        weights: False puts the network on the meta device.

    Raises:
        UserError: The pipeline, the scheduler or the network is not supported, or weights are not safetensors.
    """
    folder = Path(folder)
    index = read_json(folder / INDEX)
    family = family_of(folder)
    place, kind = part_folder(folder, family.part), class_name(index, family.part)
    try:
        model = load_model(place, kind, family.part, (family.network_class,)) if weights else meta_model(place, kind)
        network = family(model, **_choices(folder, family))
    except UserError as error:
        raise UserError(f"teacher: '{folder}': {error}") from error
    scheduler = part_folder(folder, "scheduler") / "scheduler_config.json"
    path, prediction = read_scheduler(scheduler, class_name(index, "scheduler"))
    if family.latents:
        network.autoencoder = network.open_autoencoder(folder)
    if family.text:
        network.text_encoder = PipelineTextEncoder(folder, family)
    return Denoiser(network, path, prediction, latents=family.latents).eval()


def download(name: str) -> Path:
    """Download a pipeline from the hub, with safetensors alone, and return its folder.

    Raises:
        UserError: The hub cannot be reached, or it has no such pipeline for this user.
    """
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(name, use_safetensors=True))
    except Exception as error:  # no network, no such model, no permission, no id at all, no safetensors
        raise UserError(f"import: '{name}' is no folder, nor a model of the hub: {one_line(error)}") from error


def copy_pipeline(source: Path, folder: Path, **choices: Any) -> None:
    """Copy the parts of a pipeline to `folder`, but no file that could hold code.

    Args:
        source: The folder of the pipeline.
        folder: The new folder.
        **choices: Values for KEYS, which are written to `distill.json`. None leaves a key out.
    """
    parts = [name for name, held in read_json(source / INDEX).items() if isinstance(held, list)]
    places = [name for name in parts if (source / name).is_dir()] or ["."]  # old pipelines keep all parts in one folder
    for file in (file for place in places for file in (source / place).iterdir() if file.suffix in COPIED):
        copy = folder / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    shutil.copyfile(source / INDEX, folder / INDEX)
    if chosen := {name: value for name, value in choices.items() if value is not None}:
        (folder / CHOICES).write_text(json.dumps(chosen, indent=2) + "\n")


def copy_autoencoder(source: str, folder: Path) -> None:
    """Copy an autoencoder to a new folder.

    Args:
        source: The folder of an autoencoder, the folder of a pipeline with a `vae/`, or the id of either on the hub.
        folder: The new folder.

    Raises:
        UserError: `source` cannot be found, or it holds no autoencoder as safetensors.
    """
    root = Path(source)
    if not root.is_dir():
        from huggingface_hub import snapshot_download

        weights = "diffusion_pytorch_model*.safetensors*"
        wanted = ["config.json", weights, "vae/config.json", f"vae/{weights}"]
        try:
            root = Path(snapshot_download(source, allow_patterns=wanted))
        except Exception as error:  # no network, no such model, no permission, no id at all
            raise UserError(f"import: '{source}' is no folder, nor a model of the hub: {one_line(error)}") from error
    root = part_folder(root, "vae")
    if not (root / "config.json").is_file() or not any(root.glob("*.safetensors")):
        raise UserError(f"import: '{source}' holds no autoencoder: a config.json and .safetensors weights")
    folder.mkdir(parents=True)
    for file in root.iterdir():
        if file.suffix in (".json", ".safetensors"):
            shutil.copyfile(file, folder / file.name)


def family_of(folder: Path) -> type[Family]:
    """Return the family of a pipeline folder.

    Raises:
        UserError: No family has this class of pipeline.
    """
    name = read_json(folder / INDEX).get("_class_name")
    if name not in FAMILIES:
        raise UserError(f"teacher: '{folder}': pipeline must be one of {', '.join(FAMILIES)}, got {name!r}")
    return FAMILIES[name]


def denoiser_files(folder: Path) -> list[Path]:
    """Return the configs and weights of a pipeline's denoiser, without its text encoders and its autoencoder."""
    parts = [part_folder(folder, "scheduler"), part_folder(folder, family_of(folder).part)]
    found = [*(folder / name for name in (INDEX, CHOICES)), *(f for p in parts for f in sorted(p.iterdir()))]
    return [file for file in dict.fromkeys(found) if file.suffix in (".json", ".safetensors") and file.is_file()]


def read_scheduler(file: Path, name: Any) -> tuple[NoisePath, Kind]:
    """Return the path and the prediction kind that a scheduler's config describes.

    Args:
        file: The scheduler_config.json.
        name: The class of the scheduler in diffusers.

    Raises:
        UserError: The scheduler has no Gaussian path, or no prediction kind that we know.
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
    # Schedulers with a shift are those of flows. The shift moves the times of a sampler, but not the path.
    if hasattr(scheduler, "shift") or predicted == "flow_prediction":
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


def _choices(folder: Path, family: type[Family]) -> dict[str, Any]:
    """Return the arguments of a family beside its network, from `distill.json` and the autoencoder's config."""
    choices = read_json(folder / CHOICES) if (folder / CHOICES).is_file() else {}
    if unknown := choices.keys() - set(KEYS):
        raise UserError(f"{CHOICES}: unknown key {min(unknown)!r}; allowed: {', '.join(KEYS)}")
    for name, value in choices.items():
        if value is not None and not _is_positive(value, name == "resolution"):
            raise UserError(f"{CHOICES}: {name}: must be positive or null, got {value!r}")
    if not family.latents:
        if any(value is not None for value in choices.values()):
            raise UserError(f"{CHOICES}: a network of pixels has no choice of resolution or guidance")
        return {}
    factor = family.pixels_per_latent(folder)
    resolution, guidance = choices.get("resolution"), choices.get("guidance")
    sides = (resolution, resolution) if isinstance(resolution, int | float) else resolution
    if sides is not None and any(side % factor for side in sides):
        raise UserError(f"{CHOICES}: resolution: must be a multiple of {factor}, got {resolution}")
    size = None if sides is None else tuple(int(side // factor) for side in sides)
    return {"factor": factor, "size": size} | ({} if guidance is None else {"guidance": guidance})


def _is_positive(value: Any, or_pair: bool) -> bool:
    """Return whether `value` is a positive number, or with `or_pair` a list of two positive numbers."""
    if or_pair and isinstance(value, list) and len(value) == 2:
        return all(_is_positive(one, False) for one in value)
    return not isinstance(value, bool) and isinstance(value, int | float) and value > 0
