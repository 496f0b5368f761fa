"""diffusers' UNet2DModel as what Denoiser calls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from distill.denoiser import Condition
from distill.errors import UserError, one_line

if TYPE_CHECKING:
    from diffusers import UNet2DModel


class UNet(nn.Module):
    """UNet2DModel behind the denoiser's interface: (x [B, C, H, W], time [B], labels int64 [B] or None).

    `null` is the label of the null condition, which is the network's last; None where there is none.
    """

    def __init__(self, unet: UNet2DModel, null: int | None = None) -> None:
        super().__init__()
        self.unet, self.null = unet, null
        self.taps = {"encoder": f"unet.down_blocks.{len(unet.down_blocks) - 1}", "middle": "unet.mid_block"}

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a sample."""
        size = self.unet.config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config["in_channels"], height, width

    @property
    def classes(self) -> int:
        """Number of class labels, that of the null condition left out; 0 when unconditional."""
        return (self.unet.config["num_class_embeds"] or 0) - (self.null is not None)

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        return cast(Tensor, self.unet(x, time, class_labels=cond, return_dict=False)[0])


def build_unet(config: Mapping[str, Any], null: int | None = None) -> UNet:
    """A freshly initialised UNet2DModel from its config; raises UserError when diffusers refuses it."""
    from diffusers import UNet2DModel

    try:
        return UNet(UNet2DModel(**config), null)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UserError(f"unet: diffusers refuses this UNet2DModel config: {one_line(error)}") from error


def load_unet(folder: FilePath) -> UNet:
    """The UNet2DModel that diffusers saved in `folder`; raises UserError when it is missing or damaged."""
    from diffusers import UNet2DModel

    if not any(folder.glob("*.safetensors")):  # diffusers would go on to a pickle, which may run code
        raise UserError(f"teacher: cannot read '{folder}': it holds no .safetensors file")
    try:
        unet, info = UNet2DModel.from_pretrained(
            folder, output_loading_info=True, local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # diffusers, safetensors and torch each raise their own kinds for a damaged folder
        raise UserError(f"teacher: cannot read '{folder}': {one_line(error)}") from error
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if wrong:
        raise UserError(f"teacher: the weights in '{folder}' do not fit their config, first at {wrong[0]}")
    return UNet(unet)
