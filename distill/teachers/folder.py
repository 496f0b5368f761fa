"""A teacher's folder: `denoiser.json` and the network's weights as safetensors.

The JSON states the path, the prediction kind, sigma_data, and what kind of network it is: without `network` a
UNet2DModel, which diffusers reads from `unet/`; with it the name and the settings of EDM's or EDM2's, or of the user's
own class ("my_package.my_module:MyNet"), whose weights are `network.safetensors` under their own names. `null` is the
label of the null condition, where the network was trained with one. `latents` says that its samples are no pixels:
true, or `{"mean": [...], "std": [...]}` by channel, (z - mean) / std of what an autoencoder gives, that in `vae/` if
there is one. `shape` and `classes` say what a class of the user's own cannot; for the others they are for readers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distill.denoiser import Denoiser, Normalisation
from distill.encoders.parts import Autoencoder, with_parts
from distill.errors import UserError, one_line
from distill.paths import PATHS, Path
from distill.prediction import KINDS
from distill.teachers.edm import EDM2Net, EDMNet
from distill.teachers.own import OwnNet, try_out
from distill.teachers.pipeline import INDEX, load_pipeline, outline
from distill.teachers.unet import UNet, load_unet

DESCRIPTION, WEIGHTS = "denoiser.json", "network.safetensors"
NETWORKS: dict[str, type[EDMNet | EDM2Net]] = {"edm": EDMNet, "edm2": EDM2Net}


class Network(Protocol):
    """What every network of a teacher says of itself."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a sample."""

    @property
    def classes(self) -> int:
        """Number of class labels, that of the null condition left out; 0 when unconditional."""

    @property
    def null(self) -> int | None:
        """The label of the null condition, the one after the classes; None where there is none."""


def save_denoiser(denoiser: Denoiser, folder: str | FilePath) -> None:
    """Write `denoiser` to `folder`; raises UserError for a path, network or settings that a folder cannot name."""
    network, folder = denoiser.network, FilePath(folder)
    name = next((name for name, kind in PATHS.items() if type(denoiser.path) is kind), None)
    if name is None:
        raise UserError(f"teacher: a path of your own, {denoiser.path}, has no name for {DESCRIPTION}")
    if not isinstance(network, UNet | OwnNet | EDMNet | EDM2Net):
        raise UserError(
            f"teacher: {DESCRIPTION} cannot name a {type(network).__name__}; a network of your own goes into OwnNet"
        )
    fields = {f.name: getattr(denoiser.path, f.name) for f in dataclasses.fields(denoiser.path) if f.init}
    description: dict[str, Any] = {
        "path": {"name": name, **fields},
        "prediction": denoiser.prediction,
        "sigma_data": denoiser.sigma_data,
        "shape": network.shape,
        "classes": network.classes,
    }
    if network.null is not None:
        description["null"] = network.null
    if stated := denoiser.latents:
        description["latents"] = dataclasses.asdict(stated) if isinstance(stated, Normalisation) else True
    if not isinstance(network, UNet):
        description["network"] = {"name": _name(network), **network.settings}
    try:
        text = json.dumps(description, indent=2)
    except (TypeError, ValueError) as error:
        raise UserError(f"teacher: settings must be plain values for {DESCRIPTION}: {one_line(error)}") from error
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(network, UNet):
        network.unet.save_pretrained(folder / "unet")
    else:
        bare = network.module if isinstance(network, OwnNet) else network
        save_file({key: _stored(value) for key, value in bare.state_dict().items()}, folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(text + "\n")


def load_denoiser(folder: str | FilePath, weights: bool = True) -> Denoiser:
    """Read a denoiser, in eval mode, from `folder`, ours or a diffusers pipeline's.

    Without its `weights` it has shapes alone: its network is on the meta device, and no file of weights need be there.
    A network of the user's own class is imported, never from `folder` itself, and called once on zeros. Raises
    UserError when it is missing, damaged or unknown.
    """
    folder = FilePath(folder)
    if not folder.is_dir():
        raise UserError(f"teacher: no folder '{folder}'; `distill teacher` trains one, `distill import` fetches one")
    file = folder / DESCRIPTION
    if not file.exists() and (folder / INDEX).is_file():
        return with_parts(load_pipeline(folder, weights), folder)
    description, path, arguments = _read_description(file)
    null, settings = description.get("null"), description.get("network")
    network: Any
    if not weights:
        network = _outline(description, folder)
    else:
        network = load_unet(folder / "unet") if settings is None else _load_network(description, folder)
    network.null = null
    if null is not None and not (isinstance(null, int) and null == network.classes > 0):
        raise UserError(f"teacher: '{file}': null: must be the label after the network's classes, got {null!r}")
    if (folder / "vae").is_dir():
        if not isinstance(arguments["latents"], Normalisation):
            raise UserError(f"teacher: '{file}': latents: must state mean and std by channel, as there is a vae/")
        network.autoencoder = Autoencoder(folder, arguments["latents"], network.shape[0])
    denoiser = Denoiser(network, path, **arguments).eval()
    if isinstance(network, OwnNet) and weights:
        with _naming(folder):
            try_out(denoiser)
    return denoiser


def _outline(description: Mapping[str, Any], folder: FilePath) -> nn.Module:
    settings = description.get("network")
    if settings is None:
        return UNet(outline(folder / "unet", "UNet2DModel"))
    with _naming(folder), torch.device("meta"):
        return _own(description, folder) if _is_own(settings) else _named(settings)


def build_network(settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> EDMNet | EDM2Net:
    """The network of `settings` ("name" among them) with the weights `state`, float32, in eval mode.

    Nothing is allocated before names and shapes are known to agree; raises UserError where they do not.
    """
    with torch.device("meta"):
        network = _named(settings)
    _check_weights(network, state)
    copies = {key: value.to(torch.float32, copy=True) for key, value in state.items()}  # a file read is a map of it
    network.load_state_dict(copies, assign=True)
    return network.eval()


def _named(settings: Mapping[str, Any]) -> EDMNet | EDM2Net:
    arguments = dict(settings)
    name = arguments.pop("name", None)
    if name not in NETWORKS:
        raise UserError(f"network: name must be one of {', '.join(NETWORKS)} or your own 'module:Class', got {name!r}")
    return NETWORKS[name](**arguments)


def _check_weights(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    wanted = {key: value.shape for key, value in network.state_dict().items()}
    for key in sorted(wanted.keys() ^ state.keys()):
        raise UserError(f"weights: '{key}' is {'missing' if key in wanted else 'no weight of this network'}")
    for key, shape in wanted.items():
        if state[key].shape != shape:
            raise UserError(f"weights: '{key}' has shape {tuple(state[key].shape)}, the network {tuple(shape)}")


def _is_own(settings: Mapping[str, Any]) -> bool:
    return ":" in str(settings.get("name"))


def _build_own(description: Mapping[str, Any], state: Mapping[str, Tensor], folder: FilePath) -> OwnNet:
    """Constructed with memory of its own: unlike those of NETWORKS it may keep tensors that are no weights."""
    network = _own(description, folder)
    _check_weights(network.module, state)
    network.module.load_state_dict(state)
    return network


def _own(description: Mapping[str, Any], folder: FilePath) -> OwnNet:
    settings, shape, classes = dict(description["network"]), description.get("shape", ()), description.get("classes", 0)
    return OwnNet(settings.pop("name"), settings, shape, classes, foreign=folder)


def _name(network: OwnNet | EDMNet | EDM2Net) -> str:
    if isinstance(network, OwnNet):
        return network.name
    return next(name for name, kind in NETWORKS.items() if type(network) is kind)


def _stored(value: Tensor) -> Tensor:
    return (value.detach().float() if value.is_floating_point() else value.detach()).contiguous()


@contextmanager
def _naming(folder: FilePath) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"teacher: '{folder}': {error}") from error


def _load_network(description: Mapping[str, Any], folder: FilePath) -> nn.Module:
    file, settings = folder / WEIGHTS, description["network"]
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"teacher: cannot read '{file}': {one_line(error)}") from error
    with _naming(folder):
        return _build_own(description, state, folder) if _is_own(settings) else build_network(settings, state)


def _read_description(file: FilePath) -> tuple[dict[str, Any], Path, dict[str, Any]]:
    """The description, the path in it, and the further arguments of Denoiser."""
    try:
        description = json.loads(file.read_text())
        fields, prediction = dict(description["path"]), description["prediction"]
        name, latents = fields.pop("name"), _normalisation(description.get("latents", False))
        for what, given, allowed in (("path", name, tuple(PATHS)), ("prediction", prediction, KINDS)):
            if given not in allowed:
                raise UserError(f"{what}: must be one of {', '.join(allowed)}, got {given!r}")
        path = PATHS[name](**fields)
        path.time(torch.ones(1))  # a field of a wrong type fails here
        if "network" in description:
            description["network"] = dict(description["network"])
        arguments = {"prediction": prediction, "sigma_data": float(description["sigma_data"]), "latents": latents}
        return description, path, arguments
    except FileNotFoundError as error:
        raise UserError(f"teacher: '{file}' is missing; it states path and prediction kind of the network") from error
    except UserError as error:
        raise UserError(f"teacher: '{file}': {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"teacher: '{file}' is damaged: {type(error).__name__}: {one_line(error)}") from error


def _normalisation(latents: Any) -> bool | Normalisation:
    """What `latents` of a description says."""
    if isinstance(latents, bool):
        return latents
    pair: dict[str, Any] = latents if isinstance(latents, dict) and latents.keys() == {"mean", "std"} else {"": None}
    if not all(isinstance(each, list) and all(type(n) in (int, float) for n in each) for each in pair.values()):
        raise UserError(f"latents: must be true, false or {{mean: [...], std: [...]}}, got {json.dumps(latents):.120}")
    return Normalisation(*(tuple(map(float, pair[name])) for name in ("mean", "std")))
