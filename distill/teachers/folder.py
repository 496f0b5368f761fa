"""A teacher's folder: `denoiser.json` and the network's weights as safetensors.

`denoiser.json` has these entries:

- `path`, `prediction` and `sigma_data` say how the network's output becomes an estimate of x0.
- `network` holds the name and the settings of EDM's or EDM2's network, or of the user's own class, such as
  "my_package.my_module:MyNet". The weights are then in `network.safetensors`, under the network's own names. Without
  this entry the network is a UNet2DModel, which diffusers reads from `unet/`.
- `null` is the label of the null condition, if the network was trained with one.
- `latents` is true if samples are latents. It is `{"mean": [...], "std": [...]}`, one number for each channel, if the
  network takes (z - mean) / std of the autoencoder's latents z. That autoencoder is in `vae/`, if there is one.
- `class_names` holds the names of the classes by number, where they have names.
- `shape` and `classes` are read for a class of the user's own, which does not state them. For other networks they only
  inform people.
"""

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path as FilePath
from typing import Any, cast

from distill.denoiser import Denoiser
from distill.encoders.autoencoder import DiffusersAutoencoder
from distill.encoders.latents import Normalisation
from distill.errors import UserError, one_line
from distill.networks.network import Network
from distill.paths import PATHS
from distill.pipeline_folder import INDEX, part_folder
from distill.saved_files import copy_file
from distill.teachers.description import DESCRIPTION, NetworkRecord, read_description
from distill.teachers.edm import PUBLISHED
from distill.teachers.families import Family
from distill.teachers.own import OwnNet, try_out
from distill.teachers.pipeline import (
    copy_autoencoder,
    copy_pipeline,
    family_of,
    folder_in_errors,
    load_pipeline,
    read_choices,
    refuse_adapters,
    refuse_file,
)
from distill.teachers.trial import try_shapes
from distill.teachers.unet import UNet
from distill.user_code import trusting


def save_denoiser(denoiser: Denoiser, folder: str | FilePath) -> None:
    """Save a denoiser as a teacher's folder.

    Args:
        denoiser: The denoiser, with a path of `distill.paths.PATHS`.
        folder: The folder to write, which is created if needed.

    Raises:
        UserError: `denoiser.json` cannot name its path or its network, or cannot hold the network's settings.
    """
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
    if network.class_names is not None:
        description["class_names"] = network.class_names
    if network.null_label is not None:
        description["null"] = network.null_label
    if stated := denoiser.latents:
        description["latents"] = True if stated is True else dataclasses.asdict(stated)
    if (named := network.description()) is not None:
        description["network"] = named
    try:
        text = json.dumps(description, indent=2)
    except (TypeError, ValueError) as error:
        raise UserError(f"teacher: settings must be plain values for {DESCRIPTION}: {one_line(error)}") from error
    folder.mkdir(parents=True, exist_ok=True)
    network.save(folder)
    (folder / DESCRIPTION).write_text(text + "\n")


def save_fine_tuned(denoiser: Denoiser, source: str | FilePath, folder: str | FilePath) -> None:
    """Save a denoiser that was trained from the weights of another, as a teacher of the same kind.

    All but the weights of the network are copies of what is beside them in the other's folder: the parts of a pipeline,
    an autoencoder, the files of a class of the user's own.

    Args:
        denoiser: The denoiser.
        source: The folder of the teacher, or of the pipeline, with whose weights its training began.
        folder: The folder to write, which is created if needed.

    Raises:
        UserError: A file cannot be copied.
    """
    source, folder = FilePath(source), FilePath(folder)
    if is_pipeline(source):
        copy_pipeline(source, folder, **read_choices(source))
        place = part_folder(folder, family_of(source).part)
        for old in place.glob("diffusion_pytorch_model*"):  # also those of a variant, such as fp16
            old.unlink()
        cast(Family, denoiser.network).save_part(place)
        return
    save_denoiser(denoiser, folder)
    if (source / "vae").is_dir():
        copy_autoencoder(str(source), folder / "vae")
    for code in source.glob("*.py"):
        copy_file(code, folder / code.name)


def is_pipeline(folder: FilePath) -> bool:
    """Return whether a teacher's folder is that of a diffusers pipeline."""
    return not (folder / DESCRIPTION).exists() and (folder / INDEX).is_file()


def load_denoiser(folder: str | FilePath, weights: bool = True, trust_code: bool | Collection[str] = False) -> Denoiser:
    """Load a denoiser from a teacher's folder, or from the folder of a diffusers pipeline.

    A network of the user's own class is called once on zeros.

    Args:
        folder: The teacher's folder.
        weights: False puts the network on the meta device, which tells its shapes without any file of weights.
        trust_code: Whether the code that the folder names may run, or the SHA-256 of the files that may.

    Returns:
        The denoiser, in float32 and eval mode.

    Raises:
        UserError: The teacher is missing, damaged or unknown, or names code that may not run.
    """
    with trusting(trust_code):
        return _load(FilePath(folder), weights)


def _load(folder: FilePath, weights: bool) -> Denoiser:
    """Load a denoiser as `load_denoiser` does."""
    if not folder.is_dir():
        refuse_file(folder)
        raise UserError(f"teacher: no folder '{folder}'; `distill teacher` trains one, `distill import` fetches one")
    file = folder / DESCRIPTION
    if is_pipeline(folder):
        return load_pipeline(folder, weights)
    description, path, arguments = read_description(folder)
    null, kind = description.get("null"), _kind(description.get("network"), folder)
    with folder_in_errors(folder):
        refuse_adapters(folder)
        network = kind.load(folder, description, weights)
    if null is not None and not null == network.classes > 0:
        raise UserError(f"teacher: '{file}': null: must be the label after the network's classes, got {null!r}")
    if network.own_class is None:  # a class of the user's own is called below, with values
        with folder_in_errors(folder):
            try_shapes(network)
    if (folder / "vae").is_dir():
        if not isinstance(arguments["latents"], Normalisation):
            raise UserError(f"teacher: '{file}': latents: must state mean and std by channel, as there is a vae/")
        network.autoencoder = DiffusersAutoencoder(folder, arguments["latents"], network.shape[0])
    if len(names := description.get("class_names", [])) == network.classes > 0:
        network.class_names = tuple(names)
    denoiser = Denoiser(network, path, **arguments).eval()
    if network.own_class is not None and weights:
        with folder_in_errors(folder):
            try_out(denoiser)
    return denoiser


def _kind(settings: NetworkRecord | None, folder: FilePath) -> type[Network]:
    """Return the kind of network that the entry `network` of a description names."""
    if settings is None:
        return UNet
    name = settings["name"]
    if ":" in name:
        return OwnNet
    if name not in PUBLISHED:
        names = ", ".join(PUBLISHED)
        raise UserError(
            f"teacher: '{folder}': network: name must be one of {names} or your own 'module:Class', got {name!r}"
        )
    return PUBLISHED[name]
