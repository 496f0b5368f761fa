"""The folder of a diffusers pipeline, as `save_pretrained` writes it: its index, its parts, and their models."""

import hashlib
import re
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from torch import nn

from distill.errors import UserError, one_line, options, require
from distill.quiet import quiet_libraries
from distill.records import read_record
from distill.saved_files import check_folder
from distill.weights import check_loaded

INDEX = "model_index.json"
MAX_LAYERS = 1000  # in any number of layers or blocks of a config, since a network is built before its weights are read
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


def read_json(file: Path) -> dict[str, Any]:
    """Read the JSON object in a file of diffusers, which may hold infinity, or raise UserError when it holds none."""
    try:
        content: dict[str, Any] = read_record(file, shown=f"teacher: '{file}'", finite=False)
    except FileNotFoundError:
        raise UserError(f"teacher: '{file}' is missing") from None
    return content


def check_layers(config: Any, key: str = "") -> None:
    """Raise UserError if a number of layers or blocks in the config of a model is larger than that of any network."""
    if isinstance(config, dict):
        for name, value in config.items():
            check_layers(value, name)
    elif isinstance(config, list | tuple):
        for value in config:
            check_layers(value, key)
    elif isinstance(config, int) and config > MAX_LAYERS and re.search(r"(layers|blocks)(_|$)", key):
        raise UserError(f"{key}: must be at most {MAX_LAYERS:,}, got {config!s:.20}")


def part_folder(folder: Path, name: str) -> Path:
    """Return the folder of the part `name`. The earliest pipelines keep all parts in `folder` itself."""
    return folder / name if (folder / name).is_dir() else folder


def class_name(index: dict[str, Any], name: str) -> Any:
    """Return the class name of the part `name` in a pipeline's `index`, or None where the index does not name it."""
    entry = index.get(name)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else entry


def pixels_per_latent(folder: Path) -> int:
    """Return the number of pixels along each side of one latent, from the config of the autoencoder.

    Raises:
        UserError: The config is missing or names no blocks.
    """
    config = read_json(part_folder(folder, "vae") / "config.json")
    blocks = config.get("block_out_channels") or config.get("encoder_block_out_channels")
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= 16:
        raise UserError(f"cannot read '{part_folder(folder, 'vae')}': its config lists no blocks")
    return int(2 ** (len(blocks) - 1))


def weight_variant(place: Path, stem: str = "diffusion_pytorch_model") -> str | None:
    """Return the variant of the safetensors weights in a folder, such as "fp16", or None for weights without one.

    Args:
        place: The folder of a model.
        stem: The beginning of the names of its weights.

    Raises:
        UserError: There are no weights, or weights of several variants and none without one.
    """
    files = sorted(file.name for file in place.glob("*.safetensors"))
    found = set(_variants(place, stem).values())
    if None in found:
        return None
    if len(found) == 1:
        return found.pop()
    if found:
        names = options(f"{stem}.{variant}.safetensors" for variant in sorted(map(str, found)))
        raise UserError(f"cannot read '{place}': it holds {names}; keep the one that you want")
    if files:
        raise UserError(f"cannot read '{place}': it holds {files[0]}, and no {stem}.safetensors")
    pickles = sorted(file.name for file in place.glob("*") if file.suffix in PICKLES)
    if pickles:  # diffusers would load one, which may run code
        raise UserError(
            f"cannot read '{place}': it holds no .safetensors file, and {pickles[0]} is a pickle, which may run code;"
            " where you trust it, write it anew: diffusers.DiffusionPipeline.from_pretrained(OLD).save_pretrained(NEW)"
        )
    raise UserError(f"cannot read '{place}': it holds no .safetensors file; download the whole model again")


def _variants(place: Path, stem: str) -> dict[Path, str | None]:
    """Return the safetensors files of weights in a folder, with their variants."""
    named = re.compile(rf"{stem}(?:-\d+-of-\d+)?(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors")
    found = {file: named.fullmatch(file.name) for file in place.glob("*.safetensors")}
    return {file: match[1] for file, match in found.items() if match}


def loaded_files(place: Path, variant: str | None = None) -> list[Path]:
    """Return the safetensors files that diffusers or transformers loads for the model in a folder.

    Args:
        place: The folder.
        variant: The variant to load. A folder that lacks it is loaded without one.
    """
    found = _variants(place, _weights_stem(place))
    chosen = [file for file, its in found.items() if its == variant]
    # The index of a model in several files may give them any name.
    return chosen or [file for file, its in found.items() if its is None] or sorted(place.glob("*.safetensors"))


def _weights_stem(place: Path) -> str:
    """Return the beginning of the names of the weights in a folder: that of diffusers, or else of transformers."""
    stem = "diffusion_pytorch_model"
    return stem if any(place.glob(f"{stem}*.safetensors")) else "model"


@quiet_libraries()
def meta_model(place: Path, kind: str) -> Any:
    """Build the diffusers model of class `kind` from the config.json in `place`, on the meta device.

    Raises:
        UserError: The config is missing, or it does not describe such a model.
    """
    import diffusers

    return _on_meta(place, kind, lambda config: getattr(diffusers, kind).from_config(config))


def meta_text_encoder(place: Path, kind: str) -> Any:
    """Build the transformers model of class `kind` from the config.json in `place`, on the meta device.

    Raises:
        UserError: The config is missing, or it does not describe such a model.
    """
    import transformers

    def build(config: Any) -> Any:
        model = getattr(transformers, kind)
        require(issubclass(model, transformers.PreTrainedModel), f"{kind} is no model of transformers")
        return model(model.config_class.from_dict(config))

    return _on_meta(place, kind, build)


def _on_meta(place: Path, kind: str, build: Callable[[Any], Any]) -> Any:
    """Return what `build` makes of the config.json in `place`, in eval mode and on the meta device."""
    import torch

    try:
        config = read_json(place / "config.json")
        check_layers(config)
        with torch.device("meta"):
            return build(config).eval()
    except UserError:
        raise
    except Exception as error:  # a config with values of other types fails anywhere in the libraries or in torch
        raise UserError(f"cannot read '{place}' ({kind}): {one_line(error)}") from error


@quiet_libraries()
def load_model(place: Path, kind: Any, name: str, allowed: tuple[str, ...]) -> Any:
    """Load a diffusers model, in float32 and in eval mode.

    Args:
        place: The folder of the model.
        kind: The name of the model's class.
        name: The name of the part, for messages.
        allowed: The names of the classes that the part may have.

    Raises:
        UserError: The class is not allowed, or the weights are missing, damaged, no safetensors, or do not fit their
            config.
    """
    import diffusers
    import torch

    require(kind in allowed, f"{name} must be {' or '.join(allowed)}, got {kind!r}")
    variant = weight_variant(place)
    options = {"local_files_only": True, "use_safetensors": True, "variant": variant}
    try:
        check_folder(place)
        _check_size(place, kind)
        model, info = getattr(diffusers, kind).from_pretrained(
            place, output_loading_info=True, dtype=torch.float32, **options
        )
    except UserError:
        raise
    except Exception as error:  # diffusers, safetensors and torch each raise their own kinds for a damaged folder
        raise UserError(f"cannot read '{place}' ({kind}): {one_line(error)}") from error
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if wrong:
        raise UserError(f"the weights in '{place}' do not fit their config, first at {wrong[0]}")
    try:
        check_loaded(model, loaded_files(place, variant))
    except UserError as error:
        raise UserError(f"'{place}': {error}") from error
    return model.eval()


def _check_size(place: Path, kind: str) -> None:
    """Raise UserError if a model has more weights than its files have bytes, before memory is taken for them."""
    weights = sum(weight.numel() for weight in meta_model(place, kind).parameters())
    held = sum(file.stat().st_size for file in place.glob("*.safetensors"))
    problem = f"its config describes {weights:,} weights, its files have {held:,} bytes"
    require(weights <= held, f"cannot read '{place}' ({kind}): {problem}")


@quiet_libraries()
def load_stock_pipeline(folder: Path, **arguments: Any) -> Any:
    """Load the pipeline in `folder` as diffusers does, in eval mode, or raise UserError when diffusers cannot."""
    from diffusers import DiffusionPipeline

    variant = _pipeline_variant(folder, arguments)
    options = {"local_files_only": True, "use_safetensors": True, "variant": variant}
    try:
        for place in (folder, *(part for part in folder.iterdir() if part.is_dir())):
            check_folder(place)
            if (place / "config.json").is_file():
                check_layers(read_json(place / "config.json"))
        pipe = DiffusionPipeline.from_pretrained(folder, **options, **arguments)
    except Exception as error:  # diffusers and transformers raise their own kinds
        raise UserError(f"teacher: diffusers cannot load '{folder}': {one_line(error)}") from error
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module) and name not in arguments:
            try:
                check_loaded(part, loaded_files(folder / name, variant))
            except UserError as error:
                raise UserError(f"teacher: '{folder / name}': {error}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _pipeline_variant(folder: Path, given: Container[str]) -> str | None:
    """Return the variant in which some part of a pipeline has its weights alone, or None. `given` parts do not count.

    diffusers takes the weights without a variant for parts that have no others.
    """
    for name, entry in read_json(folder / INDEX).items():
        place = folder / name
        if isinstance(entry, list) and name not in given and any(place.glob("*.safetensors")):
            stem = _weights_stem(place)
            if any(place.glob(f"{stem}*.safetensors")) and (variant := weight_variant(place, stem)) is not None:
                return variant
    return None


def file_hash(files: list[Path]) -> str:
    """Return the SHA-256 over the names and contents of `files`."""
    total = hashlib.sha256()
    for file in files:
        if file.is_file():
            with file.open("rb") as opened:
                content = hashlib.file_digest(opened, "sha256").hexdigest()
            total.update(f"{file.parent.name}/{file.name} {content}\n".encode())
    return total.hexdigest()
