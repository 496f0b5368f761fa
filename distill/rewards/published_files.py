"""The published files of rewards: found in a folder or on the hub, and read without running code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distill.errors import UserError, one_line
from distill.pipeline_folder import loaded_files
from distill.quiet import quiet_libraries
from distill.saved_files import check_folder, load_tensors
from distill.weights import check_loaded, fill, fits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import CLIPModel, PreTrainedConfig


@contextmanager
def naming_file(key: str, source: str) -> Iterator[None]:
    """Raise any error of the block as a UserError that names the key of the recipe and the file or folder."""
    try:
        yield
    except UserError as error:
        if str(error).startswith(key):
            raise
        raise UserError(f"{key}: '{source}': {error}") from error
    except Exception as error:  # transformers, safetensors, torch and the hub raise errors of many classes
        raise UserError(f"{key}: cannot read '{source}': {type(error).__name__}: {one_line(error)}") from error


def find_file(source: str, name: str, key: str) -> Path:
    """Return a file of weights.

    Args:
        source: The file itself, a folder that holds it, or an id of the hub.
        name: The published name of the file. A folder may hold it as .safetensors instead.
        key: The key of the recipe, for messages.

    Raises:
        UserError: There is no such file.
    """
    place = Path(source).expanduser()
    if place.is_file():
        return place
    if place.is_dir():
        names = (name, str(Path(name).with_suffix(".safetensors")))
        for one in names:
            if (place / one).is_file():
                return place / one
        raise UserError(f"{key}: '{source}' holds neither {names[0]} nor {names[1]}")
    with naming_file(key, source):
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(source, name))


def read_state(file: Path, key: str) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, or of a file of `torch.save`, by name.

    Of the latter, torch's reader of weights builds tensors and plain values, and calls nothing that the file names.
    The tensors may be under the key `state_dict`.

    Raises:
        UserError: The file is missing or damaged, or holds anything else.
    """
    with naming_file(key, str(file)):
        if file.suffix == ".safetensors":
            return load_tensors(file)
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
        if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
            state = state["state_dict"]
        if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
            raise UserError("expected tensors by name")
        return dict(state)


def load_clip(source: str, key: str) -> CLIPModel:
    """Load the CLIP model in a folder or on the hub, in float32, frozen and in eval mode.

    The weights come from safetensors alone, because a pickle may run code.

    Raises:
        UserError: The model is missing or damaged, or is no CLIP model.
    """
    folder = Path(source)
    with naming_file(key, source), quiet_libraries():
        from transformers import CLIPModel

        if folder.is_dir():
            check_folder(folder)
        model, info = CLIPModel.from_pretrained(source, use_safetensors=True, output_loading_info=True)
        check_loaded(model, loaded_files(folder) if folder.is_dir() else ())
        if info["missing_keys"]:
            raise UserError(f"the weights lack {sorted(info['missing_keys'])[0]}")
    return model.float().requires_grad_(False).eval()


def load_tokenizer(source: str, key: str) -> Any:
    """Load the tokenizer in a folder or on the hub. Code of its own is refused. Raises UserError where it cannot."""
    with naming_file(key, source), quiet_libraries():
        from transformers import AutoTokenizer

        if Path(source).is_dir():
            check_folder(Path(source))
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)


def image_statistics(source: str, key: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of each channel, from the preprocessor_config.json in `source`."""
    with naming_file(key, source):
        from transformers.image_processing_base import ImageProcessingMixin

        settings, _ = ImageProcessingMixin.get_image_processor_dict(source)
        return tuple(settings["image_mean"]), tuple(settings["image_std"])


def model_with(kind: Any, config: PreTrainedConfig, state: Mapping[str, Tensor], **settings: Any) -> Any:
    """Build a model of transformers with these weights, in float32, frozen and in eval mode.

    Args:
        kind: The class of the model.
        config: Its config.
        state: Its weights by name.
        settings: Further arguments of the class.

    Raises:
        UserError: The weights do not fit the model.
    """
    for name, value in state.items():
        if not fits(value.dtype, torch.float32):
            raise UserError(f"weights: '{name}' is of {value.dtype}, expected floating point")
    state = {name: value.float() for name, value in state.items()}
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # which are refused here, by name
    model, info = kind.from_pretrained(None, config=config, state_dict=state, **told, **settings)
    if wrong := sorted([*info["missing_keys"], *info["unexpected_keys"], *(one[0] for one in info["mismatched_keys"])]):
        raise UserError(f"weights: they do not fit the model, first at {wrong[0]}")
    check_loaded(model, ())
    return model.float().requires_grad_(False).eval()


def linear_layers(state: Mapping[str, Tensor], width: int) -> nn.Sequential:
    """Return linear layers that turn `width` features into one score.

    Args:
        state: The weights and biases of the layers, whose order is that of the numbers in their names.
        width: The number of features.

    Raises:
        UserError: The layers do not fit each other, or end in more than one number.
    """
    names = sorted(
        (name.removesuffix(".weight") for name in state if name.endswith(".weight")),
        key=lambda name: [int(digits) for digits in re.findall(r"\d+", name)],
    )
    layers = []
    for name in names:
        outputs, inputs = state[f"{name}.weight"].shape
        layer = nn.Linear(inputs, outputs)
        fill(layer, {key: state[f"{name}.{key}"] for key in ("weight", "bias")})
        layers.append(layer)
    head = nn.Sequential(*layers)
    score = head(torch.zeros(1, width))
    if score.shape != (1, 1):
        raise UserError(f"the layers end in {score.shape[1]} numbers, expected one")
    return head.requires_grad_(False)
