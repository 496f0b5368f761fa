"""The published checkpoints of EDM and EDM2 as teachers.

The checkpoints are pickles of modules. NVIDIA's `torch_utils.persistence` records the name of a module's class, the
arguments of its constructor, and its attributes. The settings and weights of our network follow from this record, and
nothing in the file runs.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from distill.denoiser import Denoiser
from distill.encoders.latents import Normalisation
from distill.errors import UserError, one_line
from distill.networks.network import null_label
from distill.paths import EDM
from distill.pickles.files import read_pickle
from distill.pickles.reader import PERSISTENT, Object, Refused
from distill.teachers.edm import PUBLISHED

# Constructor arguments that are no settings of our networks: they change no output, or belong to the denoiser.
_NOT_SETTINGS = ("sigma_data", "use_fp16", "sigma_min", "sigma_max", "label_dropout")
_MAX_MODULES, _MAX_NAME = 100_000, 1_000  # modules of a network, and characters of a module's full name
_MAX_CHANNELS = 4_096  # of the latents of an encoder


@dataclass(frozen=True)
class Found:
    """The content of a published checkpoint.

    Attributes:
        denoiser: The teacher. `denoiser.latents` says how its latents are scaled.
        settings: The keyword arguments of its network.
        parameters: The number of its parameters.
        encoder: The name of the encoder whose latents it was trained on, or None if samples are pixels.
    """

    denoiser: Denoiser
    settings: dict[str, Any]
    parameters: int
    encoder: str | None


def read_published(file: str | Path, kind: str) -> Found:
    """Read the averaged network ("ema") of a checkpoint, in float32 and eval mode.

    Args:
        file: The pickle that the authors publish.
        kind: "edm" or "edm2".

    Raises:
        UserError: The file is damaged, holds another network, or asks to run code. The message is one line.
    """
    file = Path(file)
    data = read_pickle(file)
    try:
        return _build_teacher(data, kind)
    except Exception as error:  # a damaged record may hold any type in any place
        raise UserError(f"import: '{file}': {one_line(error) or type(error).__name__}") from error


def _build_teacher(data: Any, kind: str) -> Found:
    """Check the content of a checkpoint, and build the teacher from it."""
    if not isinstance(data, dict) or "ema" not in data:
        held = reprlib.repr(list(data)) if isinstance(data, dict) else type(data).__name__
        raise Refused(f"must hold a dict with the network under 'ema', got {held}")
    (inner, bodies), outer = PUBLISHED[kind].published_body, PUBLISHED[kind].authors_class
    name, attributes = _record(data["ema"], "ema")
    body = _record(_children(attributes)[inner], inner)[0] if name == outer and inner in _children(attributes) else None
    arguments: Any = attributes.get("_init_kwargs")
    if body not in bodies:
        held = name if body is None else f"{name} with a {body}"
        raise Refused(f"'ema' must be of class {outer} with a {' or '.join(bodies)}, got {held!r:.80}")
    named = isinstance(arguments, dict) and all(isinstance(name, str) for name in arguments)
    if not named or attributes.get("_init_args", ()) not in ((), []):
        raise Refused("'ema' must have been constructed with keyword arguments alone")
    settings = {key: value for key, value in arguments.items() if key not in _NOT_SETTINGS}
    if kind == "edm":
        settings["model_type"] = body
    sigma_data = arguments.get("sigma_data", 0.5)
    if type(sigma_data) not in (int, float) or not 0 < sigma_data < 1e6:
        raise Refused(f"sigma_data: must be positive, got {reprlib.repr(sigma_data)}")
    state = state_of_record(data["ema"])
    network = PUBLISHED[kind].build(settings, state)
    if network.classes and arguments.get("label_dropout"):
        network.null = null_label(network.classes)  # a dropped label is a row of zeros
    encoder, latents = _encoder(data.get("encoder"), network.shape[0])
    denoiser = Denoiser(network, EDM(), "edm", sigma_data, latents=latents).eval()
    return Found(denoiser, settings, sum(parameter.numel() for parameter in network.parameters()), encoder)


def state_of_record(module: Any) -> dict[str, Tensor]:
    """Return the state dict of a module's record.

    Raises:
        Refused: The record is no tree of modules, or the weights together are larger than the storages that they are
            views of. The network would take many times the memory of the file.
    """
    state: dict[str, Tensor] = {}
    held: dict[int, int] = {}  # storages by their place in memory, with their bytes
    seen: set[int] = set()
    left = [("", module)]
    while left:
        prefix, current = left.pop()
        if id(current) in seen or len(seen) > _MAX_MODULES:  # a cycle, or too many for a network
            raise Refused(f"the module '{prefix}' is in its network twice")
        if len(prefix) > _MAX_NAME:
            raise Refused(f"a module has a name of more than {_MAX_NAME:,} characters")
        seen.add(id(current))
        attributes = _record(current, prefix)[1]
        hidden = attributes.get("_non_persistent_buffers_set", ())
        for group in ("_parameters", "_buffers"):
            for name, value in _group(attributes, group).items():
                if value is None or (group == "_buffers" and name in hidden):
                    continue
                key = f"{prefix}{name}"
                if not isinstance(value, Tensor) or not value.is_floating_point():
                    raise Refused(f"weights: '{key}' is no tensor of floating-point numbers")
                state[key] = value
                held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        left += [(f"{prefix}{name}.", child) for name, child in _children(attributes).items()]
    if sum(value.nbytes for value in state.values()) > sum(held.values()):
        raise Refused("weights: they share their numbers, and are larger together than what the file holds")
    return state


def _record(module: Any, where: str) -> tuple[str, Mapping[str, Any]]:
    """Return the class name and the attributes of a module, which is a persistent object or a container of torch."""
    if isinstance(module, Object) and str(module.name) == PERSISTENT and len(module.args) == 1:
        meta = module.args[0]
        kinds = {"type": str, "class_name": str, "state": dict}
        typed = isinstance(meta, dict) and all(isinstance(meta.get(key), kind) for key, kind in kinds.items())
        if typed and meta["type"] == "class":
            return meta["class_name"], meta["state"]
    elif isinstance(module, Object) and module.name.module.startswith("torch.nn.") and isinstance(module.state, dict):
        return module.name.name, module.state
    held = str(module.name) if isinstance(module, Object) else type(module).__name__
    raise Refused(f"'{where}' is no record of a module, but {held}")


def _group(attributes: Mapping[str, Any], group: str) -> Mapping[Any, Any]:
    """Return one of the dicts that every module has: `_parameters`, `_buffers` or `_modules`."""
    values = attributes.get(group)
    if not isinstance(values, dict):
        raise Refused(f"a module has no {group}")
    return values


def _children(attributes: Mapping[str, Any]) -> dict[Any, Any]:
    """Return the submodules of a module."""
    return {name: child for name, child in _group(attributes, "_modules").items() if child is not None}


def _encoder(encoder: Any, channels: int) -> tuple[str | None, bool | Normalisation]:
    """Return the name of the encoder of latents, and the normalisation of these latents.

    The normalisation is True if the encoder does not state it. For pixels the result is (None, False).
    """
    if encoder is None:
        return None, False
    name, attributes = _record(encoder, "encoder")
    if name == "StandardRGBEncoder":
        return None, False
    if attributes.get("scale") is None or attributes.get("bias") is None:
        return name, True
    # The network takes scale z + bias, and mean and std follow. The authors computed scale and bias in float32 from
    # decimal means and stds, so rounding to six digits gives their decimals back.
    scale, bias = _floats(attributes["scale"]), _floats(attributes["bias"])
    if not len(scale) == len(bias) == channels or 0 in scale:
        raise Refused(f"'encoder' scales latents by {scale} and {bias}, the network takes {channels} channels")
    exact = [(0 - b) / s for s, b in zip(scale, bias, strict=True)], [1 / s for s in scale]
    return name, Normalisation(*(tuple(float(f"{number:.6g}") for number in numbers) for numbers in exact))


def _floats(array: Any) -> list[float]:
    """Return the numbers [N] in the record of a numpy array of float32."""
    try:
        _, shape, dtype, _, content = array.state
        assert isinstance(content, bytes) and len(content) <= 4 * _MAX_CHANNELS
        assert dtype.args[0] == "f4" and dtype.state[1] == "<" and shape == (len(content) // 4,)
        return cast(list[float], torch.frombuffer(bytearray(content), dtype=torch.float32).tolist())
    except (AttributeError, TypeError, ValueError, IndexError, AssertionError):
        raise Refused(f"'encoder' holds {reprlib.repr(array)} where numbers were expected") from None
