"""diffusers' UNet2DModel as a teacher's network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from distill.conditions import Condition
from distill.errors import UserError, one_line
from distill.networks.network import Network, null_label
from distill.pipeline_folder import check_layers, load_model, meta_model
from distill.quiet import quiet_libraries
from distill.saved_files import set_permissions
from distill.teachers.trial import try_shapes

if TYPE_CHECKING:
    from diffusers import UNet2DModel


class UNet(Network):
    """A UNet2DModel with the interface of a Network: (x [B, C, H, W], time [B], condition) -> [B, C, H, W].

    Args:
        unet: The network, whose condition is empty or labels, int64 [B].
        null: The label of the null condition, which is the network's last label. None means no null condition.
    """

    pipeline_export = "unet"
    casts_weights = True

    def __init__(self, unet: UNet2DModel, null: int | None = None) -> None:
        Network.__init__(self)
        self.unet, self.null = unet, null_label(null)
        size = unet.config["sample_size"]
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
            raise UserError(
                f"unet: sample_size must be one or two numbers in its config.json, got {size!r}; write the height and"
                " width of its samples there"
            )
        self.shape = (unet.config["in_channels"], *sides)
        self.classes = (unet.config["num_class_embeds"] or 0) - (null is not None)
        self.taps = {"encoder": f"unet.down_blocks.{len(unet.down_blocks) - 1}", "middle": "unet.mid_block"}

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        return cast(Tensor, self.unet(x, time, class_labels=cond.labels, return_dict=False)[0])

    def description(self) -> None:
        """Return None, because a description without the entry `network` stands for a UNet2DModel."""

    @quiet_libraries()
    def save(self, folder: FilePath) -> None:
        self.unet.save_pretrained(folder / "unet")
        set_permissions(folder / "unet")

    @classmethod
    def load(cls, folder: FilePath, description: Mapping[str, Any], weights: bool = True) -> UNet:
        place, kind = folder / "unet", "UNet2DModel"
        try:
            model = load_model(place, kind, "unet", (kind,)) if weights else meta_model(place, kind)
            return UNet(model, description.get("null"))
        except UserError as error:
            raise UserError(f"teacher: {str(error).removeprefix('teacher: ')}") from error


def build_unet(config: Mapping[str, Any], null: int | None = None) -> UNet:
    """Return a freshly initialised UNet2DModel.

    Args:
        config: The keyword arguments of UNet2DModel.
        null: The label of the null condition, or None.

    Raises:
        UserError: diffusers refuses the config.
    """
    from diffusers import UNet2DModel

    try:
        check_layers(config)
        unet = UNet2DModel(**config)
    except Exception as error:  # a config with values of other types fails anywhere in diffusers or torch
        raise UserError(f"unet: diffusers refuses this UNet2DModel config: {one_line(error)}") from error
    return UNet(unet, null)


def fresh_unet(settings: Mapping[str, Any], shape: tuple[int, ...], classes: int, null: bool) -> UNet:
    """Return a freshly initialised UNet2DModel for samples of `shape` (C, H, W).

    Args:
        settings: The config of the UNet2DModel, without the keys that follow from the data.
        shape: (C, H, W) of a sample.
        classes: The number of class labels, or 0 for an unconditional network.
        null: Whether the label after the classes is the null condition.

    Raises:
        UserError: `shape` is not (C, H, W), diffusers refuses the config, or the network fails for this shape.
    """
    if len(shape) != 3:
        raise UserError(f"network: a UNet2DModel takes samples (C, H, W), got {shape}")
    channels, height, width = shape
    form = {
        "sample_size": height if height == width else (height, width),
        "in_channels": channels,
        "out_channels": channels,
        "num_class_embeds": classes + null or None,
    }
    network = build_unet({**settings, **form}, classes if null else None)
    try_shapes(network)
    return network
