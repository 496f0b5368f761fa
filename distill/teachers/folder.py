"""A teacher's folder: `denoiser.json` and the network's weights as safetensors.

The JSON states the path, the prediction kind, sigma_data, and what kind of network it is: without `network` a
UNet2DModel, which diffusers reads from `unet/`; with it the name and the settings of EDM's or EDM2's, whose weights are
`network.safetensors` under their published names. `null` is the label of the null condition, where the network was
trained with one, and `latents` true where its samples are no pixels. `shape` and `classes` are for readers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distill.denoiser import Denoiser
from distill.errors import UserError, one_line
from distill.paths import PATHS, Path
from distill.prediction import KINDS
from distill.teachers.edm import EDM2Net, EDMNet
from distill.teachers.pipeline import INDEX, load_pipeline
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
    """Write `denoiser` to `folder`; raises UserError for a path or network that a folder cannot name."""
    network, folder = denoiser.network, FilePath(folder)
    name = next((name for name, kind in PATHS.items() if type(denoiser.path) is kind), None)
    if name is None:
        raise UserError(f"teacher: a path of your own, {denoiser.path}, has no name for {DESCRIPTION}")
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
    if denoiser.latents:
        description["latents"] = True
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(network, UNet):
        network.unet.save_pretrained(folder / "unet")
    else:
        name = next(name for name, kind in NETWORKS.items() if isinstance(network, kind))
        description["network"] = {"name": name, **cast("EDMNet | EDM2Net", network).settings}
        state = {key: value.detach().float().contiguous() for key, value in network.state_dict().items()}
        save_file(state, folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


def load_denoiser(folder: str | FilePath) -> Denoiser:
    """Read a denoiser, in eval mode, from `folder`, ours or a diffusers pipeline's.

    Raises UserError when it is missing, damaged or unknown.
    """
    folder = FilePath(folder)
    if not folder.is_dir():
        raise UserError(f"teacher: no folder '{folder}'; `distill teacher` trains one, `distill import` fetches one")
    file = folder / DESCRIPTION
    if not file.exists() and (folder / INDEX).is_file():
        return load_pipeline(folder)
    settings, null, path, arguments = _read_description(file)
    network: Any = load_unet(folder / "unet") if settings is None else _load_network(settings, folder)
    network.null = null
    if null is not None and not (isinstance(null, int) and null == network.classes > 0):
        raise UserError(f"teacher: '{file}': null: must be the label after the network's classes, got {null!r}")
    return Denoiser(network, path, **arguments).eval()


def build_network(settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> EDMNet | EDM2Net:
    """The network of `settings` ("name" among them) with the weights `state`, float32, in eval mode.

    Nothing is allocated before names and shapes are known to agree; raises UserError where they do not.
    """
    arguments = dict(settings)
    name = arguments.pop("name", None)
    if name not in NETWORKS:
        raise UserError(f"network: name must be one of {', '.join(NETWORKS)}, got {name!r}")
    with torch.device("meta"):
        network = NETWORKS[name](**arguments)
    wanted = {key: value.shape for key, value in network.state_dict().items()}
    for key in sorted(wanted.keys() ^ state.keys()):
        raise UserError(f"weights: '{key}' is {'missing' if key in wanted else 'no weight of this network'}")
    for key, shape in wanted.items():
        if state[key].shape != shape:
            raise UserError(f"weights: '{key}' has shape {tuple(state[key].shape)}, the network {tuple(shape)}")
    copies = {key: value.to(torch.float32, copy=True) for key, value in state.items()}  # a file read is a map of it
    network.load_state_dict(copies, assign=True)
    return network.eval()


def _load_network(settings: Mapping[str, Any], folder: FilePath) -> nn.Module:
    file = folder / WEIGHTS
    try:
        return build_network(settings, load_file(file))
    except (OSError, SafetensorError) as error:
        raise UserError(f"teacher: cannot read '{file}': {one_line(error)}") from error
    except UserError as error:
        raise UserError(f"teacher: '{folder}': {error}") from error


def _read_description(file: FilePath) -> tuple[dict[str, Any] | None, Any, Path, dict[str, Any]]:
    """The network's settings, the null condition, the path, and the further arguments of Denoiser."""
    try:
        description = json.loads(file.read_text())
        fields, prediction = dict(description["path"]), description["prediction"]
        name, latents = fields.pop("name"), description.get("latents", False)
        for what, given, allowed in (
            ("path", name, tuple(PATHS)),
            ("prediction", prediction, KINDS),
            ("latents", json.dumps(latents), ("true", "false")),
        ):
            if given not in allowed:
                raise UserError(f"{what}: must be one of {', '.join(allowed)}, got {given!r}")
        path = PATHS[name](**fields)
        path.time(torch.ones(1))  # a field of a wrong type fails here
        network = dict(description["network"]) if "network" in description else None
        arguments = {"prediction": prediction, "sigma_data": float(description["sigma_data"]), "latents": latents}
        return network, description.get("null"), path, arguments
    except FileNotFoundError as error:
        raise UserError(f"teacher: '{file}' is missing; it states path and prediction kind of the network") from error
    except UserError as error:
        raise UserError(f"teacher: '{file}': {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"teacher: '{file}' is damaged: {type(error).__name__}: {one_line(error)}") from error
