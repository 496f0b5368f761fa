"""The published checkpoints of EDM and EDM2, pickles of live modules, as teachers.

A module is kept as a record of its class's name, the arguments of its constructor and its attributes (NVIDIA's
`torch_utils.persistence`). From these follow the settings and the weights of our network; nothing in the file runs.
"""

from __future__ import annotations

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
from distill.teachers.edm import EDM2Net, EDMNet, PublishedNetwork
from distill.teachers.published.pickles import PERSISTENT, Object, Refused, read_pickle

# Constructor arguments that change no output: precision, the sampler's range, and labels dropped in training.
_APART = ("sigma_data", "use_fp16", "sigma_min", "sigma_max", "label_dropout")
_MOST_MODULES = 100_000
_KINDS: dict[str, type[PublishedNetwork]] = {kind.kind: kind for kind in (EDMNet, EDM2Net)}


@dataclass(frozen=True)
class Found:
    """What a checkpoint holds: `denoiser`, its `settings`, its count of parameters, and the name of the encoder whose
    latents it was trained on (EDM2; None where samples are pixels); `denoiser.latents` says how that scales them."""

    denoiser: Denoiser
    settings: dict[str, Any]
    parameters: int
    encoder: str | None


def read_published(file: str | Path, kind: str) -> Found:
    """The averaged network ("ema") of an EDM or EDM2 checkpoint; `kind` is "edm" or "edm2".

    Raises UserError, in one line, for a file that is damaged, holds another network, or would have anything run.
    """
    file = Path(file)
    data = read_pickle(file)
    try:
        return _found(data, kind)
    except Exception as error:  # a record may hold anything in any place
        raise UserError(f"import: '{file}': {one_line(error) or type(error).__name__}") from error


def _found(data: Any, kind: str) -> Found:
    if not isinstance(data, dict) or "ema" not in data:
        held = reprlib.repr(list(data)) if isinstance(data, dict) else type(data).__name__
        raise Refused(f"must hold a dict with the network under 'ema', got {held}")
    inner, bodies = _KINDS[kind].published_body
    outer = _KINDS[kind].authors_class
    name, attributes = _record(data["ema"], "ema")
    body = _record(_children(attributes)[inner], inner)[0] if name == outer and inner in _children(attributes) else None
    arguments: Any = attributes.get("_init_kwargs")
    if body not in bodies:
        held = name if body is None else f"{name} with a {body}"
        raise Refused(f"'ema' must be of class {outer} with a {' or '.join(bodies)}, got {held!r:.80}")
    named = isinstance(arguments, dict) and all(isinstance(name, str) for name in arguments)
    if not named or attributes.get("_init_args", ()) not in ((), []):
        raise Refused("'ema' must have been constructed with keyword arguments alone")
    settings = {key: value for key, value in arguments.items() if key not in _APART}
    if kind == "edm":
        settings["model_type"] = body
    sigma_data = arguments.get("sigma_data", 0.5)
    if type(sigma_data) not in (int, float) or not 0 < sigma_data < 1e6:
        raise Refused(f"sigma_data: must be positive, got {reprlib.repr(sigma_data)}")
    state = state_of_record(data["ema"])
    network = _KINDS[kind].build(settings, state)
    if network.classes and arguments.get("label_dropout"):
        network.null = null_label(network.classes)  # a dropped label is a row of zeros
    encoder, latents = _encoder(data.get("encoder"), network.shape[0])
    denoiser = Denoiser(network, EDM(), "edm", sigma_data, latents=latents).eval()
    return Found(denoiser, settings, sum(parameter.numel() for parameter in network.parameters()), encoder)


def state_of_record(module: Any) -> dict[str, Tensor]:
    """The state dict of a module's record; raises Refused for what is no tree of modules, and for weights that are
    not finite."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    left = [("", module)]
    while left:
        prefix, current = left.pop()
        if id(current) in seen or len(seen) > _MOST_MODULES:
            raise Refused(f"the module '{prefix}' is in its network twice")
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
                if not bool(torch.isfinite(value).all()):
                    raise Refused(f"weights: '{key}' holds numbers that are not finite")
                state[key] = value
        left += [(f"{prefix}{name}.", child) for name, child in _children(attributes).items()]
    return state


def _record(module: Any, where: str) -> tuple[str, Mapping[str, Any]]:
    """(class name, attributes) of a module: a persistent object's, or one of torch's containers."""
    if isinstance(module, Object) and str(module.name) == PERSISTENT and len(module.args) == 1:
        meta = module.args[0]
        if isinstance(meta, dict) and meta.get("type") == "class" and isinstance(meta.get("state"), dict):
            return str(meta.get("class_name")), meta["state"]
    elif isinstance(module, Object) and module.name.module.startswith("torch.nn.") and isinstance(module.state, dict):
        return module.name.name, module.state
    held = str(module.name) if isinstance(module, Object) else type(module).__name__
    raise Refused(f"'{where}' is no record of a module, but {held}")


def _group(attributes: Mapping[str, Any], group: str) -> Mapping[Any, Any]:
    values = attributes.get(group)
    if not isinstance(values, dict):
        raise Refused(f"a module has no {group}")
    return values


def _children(attributes: Mapping[str, Any]) -> dict[Any, Any]:
    return {name: child for name, child in _group(attributes, "_modules").items() if child is not None}


def _encoder(encoder: Any, channels: int) -> tuple[str | None, bool | Normalisation]:
    """Name of the encoder of latents, and how it scales them, True where it does not say; (None, False) for pixels."""
    if encoder is None:
        return None, False
    name, attributes = _record(encoder, "encoder")
    if name == "StandardRGBEncoder":
        return None, False
    if attributes.get("scale") is None or attributes.get("bias") is None:
        return name, True
    # The network sees scale z + bias. Both are float32: six digits of what they come from are those that were written.
    scale, bias = _floats(attributes["scale"]), _floats(attributes["bias"])
    if not len(scale) == len(bias) == channels or 0 in scale:
        raise Refused(f"'encoder' scales latents by {scale} and {bias}, the network takes {channels} channels")
    mean = [(0 - b) / s for s, b in zip(scale, bias, strict=True)]
    std = [1 / s for s in scale]
    return name, Normalisation(*(tuple(float(f"{number:.6g}") for number in numbers) for numbers in (mean, std)))


def _floats(array: Any) -> list[float]:
    """The numbers of numpy's array of float32, [N]."""
    try:
        _, shape, dtype, _, content = array.state
        assert dtype.args[0] == "f4" and dtype.state[1] == "<" and shape == (len(content) // 4,)
        return cast(list[float], torch.frombuffer(bytearray(content), dtype=torch.float32).tolist())
    except (AttributeError, TypeError, ValueError, IndexError, AssertionError):
        raise Refused(f"'encoder' holds {reprlib.repr(array)} where numbers were expected") from None
