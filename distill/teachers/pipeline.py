"""The folder of a diffusers pipeline, as `save_pretrained` writes it, as a teacher.

The folder's own files describe the teacher. The class of the pipeline says which family it belongs to. The scheduler's
config says the path and the quantity that the network predicts. The configs of the network and of the autoencoder say
the shape of a sample. diffusers' own classes read these configs, so that their defaults are right. The user may choose
two more settings in `distill.json` beside them (see KEYS).
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from distill.denoiser import Denoiser
from distill.encoders.text_encoder import PipelineTextEncoder
from distill.errors import UserError, one_line, options, require
from distill.pipeline_folder import (
    INDEX,
    PICKLES,
    class_name,
    load_model,
    meta_model,
    part_folder,
    read_json,
    weight_variant,
)
from distill.saved_files import copy_file, open_tensors
from distill.teachers.families import FAMILIES, Family
from distill.teachers.schedulers import read_scheduler
from distill.teachers.trial import try_shapes

CHOICES = "distill.json"
KEYS = ("resolution", "guidance")
"""The keys of `distill.json`, where null means the pipeline's default.

`resolution` is the size of an image in pixels, as [height, width] or one number for a square. `guidance` is the scale
that a network with embedded guidance (FLUX.1-dev) takes as an input, by default 3.5.
"""
ADAPTER_NAMES = ("lora_", ".lora", "hada_w1", "lokr_w1", "dora_scale", "emb_params", "string_to_param")
"""Parts of the names of tensors that adapters have and no network has."""
COPIED = (".json", ".safetensors", ".txt", ".model")  # weights, configs and the files of tokenizers


def load_pipeline(folder: str | Path, weights: bool = True) -> Denoiser:
    """Load the denoiser of a pipeline folder, in float32 and eval mode.

    Args:
        folder: The folder with model_index.json.
        weights: False puts the network on the meta device.

    Raises:
        UserError: The pipeline, the scheduler or the network is not supported, or weights are not safetensors.
    """
    folder = Path(folder)
    index, family = read_json(folder / INDEX), family_of(folder)
    with folder_in_errors(folder):
        place, kind = part_folder(folder, family.part), class_name(index, family.part)
        require(kind == family.network_class, f"{family.part} must be {family.network_class}, got {kind!r:.80}")
        check_parts(folder, family)
        refuse_adapters(folder)
        model = load_model(place, kind, family.part, (family.network_class,)) if weights else meta_model(place, kind)
        try:
            network = family(model, **_choices(folder, family))
        except UserError:
            raise
        except Exception as error:  # a config with values of other types fails anywhere
            raise UserError(f"cannot read '{place}': {type(error).__name__}: {one_line(error)}") from error
        scheduler = part_folder(folder, "scheduler") / "scheduler_config.json"
        path, prediction = read_scheduler(scheduler, class_name(index, "scheduler"))
        if family.latents:
            network.autoencoder = network.open_autoencoder(folder)
        if family.text:
            network.text_encoder = PipelineTextEncoder(folder, family)
        try_shapes(network)
    return Denoiser(network, path, prediction, latents=family.latents).eval()


@contextmanager
def folder_in_errors(folder: Path) -> Iterator[None]:
    """Add the folder to every UserError of the block that does not name a file already."""
    try:
        yield
    except UserError as error:
        if str(error).startswith("teacher: "):
            raise
        raise UserError(f"teacher: '{folder}': {error}") from error


def check_parts(folder: Path, family: type[Family], text: bool = False) -> None:
    """Raise UserError when a part of a pipeline that a teacher needs is missing.

    Args:
        folder: The folder of the pipeline.
        family: Its family.
        text: Whether the text encoders and tokenizers must be there too.
    """
    index = read_json(folder / INDEX)
    parts = {name for name, entry in index.items() if isinstance(entry, list) and entry != [None, None]}
    if not any((folder / name).is_dir() for name in parts):
        return  # the earliest pipelines keep all parts in one folder
    needed = {"scheduler", family.part} | ({"vae"} if family.latents else set())
    if text:
        needed |= {name for name in parts if name.startswith(("text_encoder", "tokenizer"))}
        if family.text and not any(name.startswith("text_encoder") for name in parts):
            needed.add("text_encoder")
    if missing := sorted(name for name in needed if not (folder / name).is_dir()):
        raise UserError(f"{missing[0]}/ is missing; download the whole pipeline again, or copy that folder into it")


def refuse_adapters(folder: Path) -> None:
    """Raise UserError when a folder holds a LoRA or an embedding of a word, which would be left out without a word.

    It is looked for beside the parts of a teacher, in them, and in the folders in them, where PEFT puts its own.
    """
    for level in ("*", "*/*", "*/*/*"):
        # Weights of networks, which are large, are opened by whoever loads them, and by nobody else.
        weights = ("diffusion_pytorch_model", "network", *(["model"] if level != "*" else []))
        for file in sorted(folder.glob(level)):
            if file.is_file() and not file.name.startswith(weights) and is_adapter(file):
                how = "pipe.load_lora_weights, pipe.fuse_lora, pipe.unload_lora_weights, pipe.save_pretrained"
                raise UserError(
                    f"{file.relative_to(folder)} is an adapter, which a teacher does not load; merge it into the"
                    f" network ({how}) or remove it"
                )


def is_adapter(file: Path) -> bool:
    """Return whether a file holds the weights of an adapter, by its name or by the names of its tensors.

    Raises:
        UserError: The file is damaged.
    """
    if file.name.startswith(("pytorch_lora_weights", "adapter_model", "adapter_config", "learned_embeds")):
        return True
    if file.suffix != ".safetensors":
        return False
    try:
        with open_tensors(file) as opened:
            names = list(opened.keys())
        return any(part in name for name in names for part in ADAPTER_NAMES)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read '{file}': {one_line(error)}") from error


def refuse_file(file: Path) -> None:
    """Raise UserError when `file` is a file, and say what makes a teacher's folder of it."""
    if not file.is_file():
        return
    if is_adapter(file):
        does = "is an adapter; load it into its pipeline, and merge it: pipe.fuse_lora(), pipe.save_pretrained(FOLDER)"
    elif file.suffix in (".safetensors", *PICKLES):
        does = (
            "is one file; diffusers makes a folder of it: StableDiffusionPipeline (or the pipeline of its model)"
            f".from_single_file('{file}').save_pretrained(FOLDER)"
        )
    else:
        does = "is a file; a teacher is a folder"
    raise UserError(f"teacher: '{file}' {does}")


def check_pipeline(folder: Path) -> None:
    """Raise UserError when a folder is no whole pipeline of a known family, and say what makes one of it."""
    if (folder / INDEX).exists():
        family = family_of(folder)
        with folder_in_errors(folder):
            check_parts(folder, family, text=True)
            refuse_adapters(folder)
            for part in (family.part, "vae") if family.latents else (family.part,):
                weight_variant(part_folder(folder, part))
        return
    configs = [*folder.glob("config.json"), *sorted(folder.glob("*/config.json"))]
    files = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", *PICKLES))
    does = "download the whole pipeline"
    if configs:
        place = configs[0].parent
        kind = read_json(configs[0]).get("_class_name")
        does = (
            f"'{place}' is a network alone ({kind}); put it into the pipeline that it was trained from:"
            f" DiffusionPipeline.from_pretrained(BASE, unet={kind}.from_pretrained('{place}')).save_pretrained(FOLDER)"
        )
        if kind == "UNet2DModel":
            does += ", or write denoiser.json beside its unet/"
    elif files:
        does = f"{files[0].name} may be a model in one file: from_single_file('{files[0]}').save_pretrained(FOLDER)"
    raise UserError(f"teacher: '{folder}' holds no {INDEX}; {does}")


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
        _copy(file, copy)
    _copy(source / INDEX, folder / INDEX)
    if chosen := {name: value for name, value in choices.items() if value is not None}:
        (folder / CHOICES).write_text(json.dumps(chosen, indent=2) + "\n")


def _copy(file: Path, copy: Path) -> None:
    try:
        copy_file(file, copy)
    except OSError as error:
        raise UserError(f"import: '{file}' cannot be copied: {error.strerror or one_line(error)}") from error


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
            _copy(file, folder / file.name)


def family_of(folder: Path) -> type[Family]:
    """Return the family of a pipeline folder.

    Raises:
        UserError: No family has this class of pipeline.
    """
    name = read_json(folder / INDEX).get("_class_name")
    if not isinstance(name, str) or name not in FAMILIES:  # a pipeline with code of its own names [module, class]
        known = options(FAMILIES, name, "docs/teachers.md")
        raise UserError(f"teacher: '{folder}': pipeline must be one of {known}, got {name!r:.200}")
    return FAMILIES[name]


def denoiser_files(folder: Path) -> list[Path]:
    """Return the configs and weights of a pipeline's denoiser, without its text encoders and its autoencoder."""
    parts = [part_folder(folder, "scheduler"), part_folder(folder, family_of(folder).part)]
    found = [*(folder / name for name in (INDEX, CHOICES)), *(f for p in parts for f in sorted(p.iterdir()))]
    return [file for file in dict.fromkeys(found) if file.suffix in (".json", ".safetensors") and file.is_file()]


def read_choices(folder: Path) -> dict[str, Any]:
    """Return the content of `distill.json`, which is empty without the file."""
    return read_json(folder / CHOICES) if (folder / CHOICES).is_file() else {}


def _choices(folder: Path, family: type[Family]) -> dict[str, Any]:
    """Return the arguments of a family beside its network, from `distill.json` and the autoencoder's config."""
    choices = read_choices(folder)
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
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 < value < 1e6
