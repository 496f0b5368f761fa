"""diffusers' UNet2DModel as a denoiser, and its folder: `unet/` as diffusers saves it plus a small `denoiser.json`.

The JSON states what no diffusers config does: the path, the prediction kind, sigma_data, the sample's shape and the
number of classes. `UNet2DModel.from_pretrained(folder, subfolder="unet")` reads the rest.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from distill.denoiser import Condition, Denoiser
from distill.errors import UserError
from distill.paths import PATHS, Path
from distill.prediction import KINDS, Kind

if TYPE_CHECKING:
    from diffusers import UNet2DModel

DESCRIPTION = "denoiser.json"


class UNet(nn.Module):
    """UNet2DModel behind the denoiser's interface: (x [B, C, H, W], time [B], labels int64 [B] or None)."""

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.unet = unet
        self.taps = {"encoder": f"unet.down_blocks.{len(unet.down_blocks) - 1}", "middle": "unet.mid_block"}

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a sample."""
        size = self.unet.config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config["in_channels"], height, width

    @property
    def classes(self) -> int:
        """Number of class labels; 0 when unconditional."""
        return self.unet.config["num_class_embeds"] or 0

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        return cast(Tensor, self.unet(x, time, class_labels=cond, return_dict=False)[0])


def build_unet(config: Mapping[str, Any]) -> UNet:
    """A freshly initialised UNet2DModel from its config; raises UserError when diffusers refuses it."""
    from diffusers import UNet2DModel

    try:
        return UNet(UNet2DModel(**config))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UserError(f"unet: diffusers refuses this UNet2DModel config: {_line(error)}") from error


def save_denoiser(denoiser: Denoiser, folder: str | FilePath) -> None:
    """Write a UNet denoiser to `folder`."""
    network = cast(UNet, denoiser.network)
    folder = FilePath(folder)
    folder.mkdir(parents=True, exist_ok=True)
    network.unet.save_pretrained(folder / "unet")
    name = next((name for name, kind in PATHS.items() if type(denoiser.path) is kind), None)
    if name is None:
        raise UserError(f"teacher: a path of your own, {denoiser.path}, has no name for {DESCRIPTION}")
    fields = {f.name: getattr(denoiser.path, f.name) for f in dataclasses.fields(denoiser.path) if f.init}
    description = {
        "path": {"name": name, **fields},
        "prediction": denoiser.prediction,
        "sigma_data": denoiser.sigma_data,
        "shape": network.shape,
        "classes": network.classes,
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


def load_denoiser(folder: str | FilePath) -> Denoiser:
    """Read a UNet denoiser, in eval mode, from `folder`; raises UserError when it is missing, damaged or unknown."""
    from diffusers import UNet2DModel

    folder = FilePath(folder)
    if not folder.is_dir():
        raise UserError(f"teacher: no folder '{folder}'; `distill teacher RECIPE` trains one")
    description = _read_description(folder / DESCRIPTION)
    if not any((folder / "unet").glob("*.safetensors")):  # diffusers would go on to a pickle, which may run code
        raise UserError(f"teacher: cannot read '{folder / 'unet'}': it holds no .safetensors file")
    try:
        unet, info = UNet2DModel.from_pretrained(
            folder / "unet", output_loading_info=True, local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # diffusers, safetensors and torch each raise their own kinds for a damaged folder
        raise UserError(f"teacher: cannot read '{folder / 'unet'}': {_line(error)}") from error
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if wrong:
        raise UserError(f"teacher: the weights in '{folder / 'unet'}' do not fit their config, first at {wrong[0]}")
    return Denoiser(UNet(unet), *description).eval()


def _read_description(file: FilePath) -> tuple[Path, Kind, float]:
    try:
        description = json.loads(file.read_text())
        fields, prediction = dict(description["path"]), description["prediction"]
        name = fields.pop("name")
        for what, given, allowed in (("path", name, tuple(PATHS)), ("prediction", prediction, KINDS)):
            if given not in allowed:
                raise UserError(f"{what}: must be one of {', '.join(allowed)}, got {given!r}")
        path = PATHS[name](**fields)
        path.time(torch.ones(1))  # a field of a wrong type fails here
        return path, prediction, float(description["sigma_data"])
    except FileNotFoundError as error:
        raise UserError(f"teacher: '{file}' is missing; it states path and prediction kind of the network") from error
    except UserError as error:
        raise UserError(f"teacher: '{file}': {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"teacher: '{file}' is damaged: {type(error).__name__}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
