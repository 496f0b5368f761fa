"""Freshly initialised networks, which a teacher's training begins with."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from distill.errors import UserError
from distill.networks.edm_unet import SongUNet
from distill.networks.network import Network, null_label
from distill.teachers.edm import PUBLISHED, EDMNet
from distill.teachers.own import OwnNet
from distill.teachers.trial import try_shapes
from distill.teachers.unet import fresh_unet

UNET = "UNet2DModel"
OF_DATA = {
    UNET: {"sample_size", "in_channels", "out_channels", "num_class_embeds"},
    **{name: {"img_resolution", "img_channels", "label_dim"} for name in PUBLISHED},
}
"""The settings of each kind of network that follow from the data."""


def network_kind(settings: Mapping[str, Any]) -> str:
    """Return the kind of network that settings of a recipe name.

    Raises:
        UserError: There is no such kind, or a setting follows from the data.
    """
    name = settings.get("name", UNET)
    if not isinstance(name, str) or (name not in OF_DATA and ":" not in name):
        raise UserError(f"network: name must be one of {', '.join(OF_DATA)} or your own module:Class, got {name!r:.80}")
    if given := OF_DATA.get(name, set()) & settings.keys():
        raise UserError(f"network: {', '.join(sorted(given))} follow from data and must not be given")
    return name


def fresh_network(settings: Mapping[str, Any], shape: tuple[int, ...], classes: int, null: bool) -> Network:
    """Return a freshly initialised network for samples of `shape`.

    Args:
        settings: The config of a UNet2DModel, or `name` and the settings of another network: edm or edm2 (DDPM++,
            NCSN++ or ADM, arXiv:2206.00364, and EDM2's, arXiv:2312.02696), or a class of the user's own,
            module:Class. The settings that follow from the data are left out.
        shape: (C, *spatial) of a sample.
        classes: The number of class labels, or 0 for an unconditional network.
        null: Whether the label after the classes is the null condition.

    Raises:
        UserError: There is no such kind of network, it cannot be made of these settings, or it fails for this shape.
            Or the class is of the user's own, and its code must not run.
    """
    name, own = network_kind(settings), {key: value for key, value in settings.items() if key != "name"}
    if name == UNET:
        return fresh_unet(own, shape, classes, null)
    label = classes if null else None
    if ":" in name:  # code runs with consent alone, since the recipe may be a stranger's
        return OwnNet(name, own, shape, classes, label, folder=Path())
    if len(shape) != 3 or shape[1] != shape[2]:
        raise UserError(f"network: {name} takes square samples (C, H, H), got {shape}")
    form = {"img_resolution": shape[1], "img_channels": shape[0], "label_dim": classes}
    try:
        network = cast(Any, PUBLISHED[name])(**form, **own)
    except UserError as error:
        raise UserError(f"network: {str(error).removeprefix('network: ')}") from error
    if isinstance(network, EDMNet):
        initialise(network.body)
    network.null = null_label(label)
    try_shapes(network)
    return cast(Network, network)


@torch.no_grad()
def initialise(body: nn.Module) -> None:
    """Give a SongUNet or a DhariwalUNet the initial weights of EDM (arXiv:2206.00364, the authors' code), in place.

    The last layer of each residual branch begins at or near zero, so that the network begins near the identity.
    """
    song = isinstance(body, SongUNet)
    for name, layer in body.named_modules():
        weight, last = getattr(layer, "weight", None), name.rpartition(".")[2]
        if weight is None or weight.ndim < 2:
            continue
        ends_branch = last in ("conv1", "proj", "out_conv") or last.endswith("aux_conv")
        if song:
            nn.init.xavier_uniform_(weight, 1e-5 if ends_branch else math.sqrt(0.2) if last == "qkv" else 1)
        elif last == "map_label":
            nn.init.normal_(weight)
        else:
            bound = 0.0 if ends_branch or last == "map_augment" else weight[0].numel() ** -0.5
            nn.init.uniform_(weight, -bound, bound)
        if layer.bias is not None:
            bound = 0.0 if song or ends_branch else weight[0].numel() ** -0.5
            nn.init.uniform_(layer.bias, -bound, bound)
