"""EDM's and EDM2's networks as what Denoiser calls: (x [B, C, H, W] scaled by c_in, time [B] = 1000 c_noise, cond) ->
F [B, C, H, W]. Their state dicts are those of the published checkpoints.

`cond` is labels int64 [B], or None, or for EDM a mapping of `labels` and `augment` [B, augment_dim]. A label outside
0 ... classes-1 is the null condition: a row of zeros in place of the one-hot row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from distill.denoiser import Condition
from distill.errors import UserError
from distill.networks.edm import DhariwalUNet, SongUNet
from distill.networks.edm2 import MPConv, MPFourier, UNet

BODIES = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}


class EDMNet(nn.Module):
    """DDPM++, NCSN++ or ADM as EDM uses them (arXiv:2206.00364).

    `settings` are the keyword arguments of the published network: those of SongUNet or DhariwalUNet, and `model_type`,
    which says whose. Raises UserError for what neither takes.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings
        arguments = dict(settings)
        model_type = arguments.pop("model_type", "DhariwalUNet")
        if model_type not in BODIES:
            raise UserError(f"model_type: must be one of {', '.join(BODIES)}, got {model_type!r}")
        self.model = BODIES[model_type](**arguments)
        self.taps = _taps("model", self.model)
        self.shape = _shape(settings)
        self.classes: int = settings.get("label_dim", 0)
        self.augment_dim: int = settings.get("augment_dim", 0)

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        given = cond if isinstance(cond, Mapping) else {"labels": cond}
        augment = given.get("augment")
        if augment is None:  # zeros still reach the weights: under DDP all parameters want a gradient
            augment = x.new_zeros(len(x), self.augment_dim)
        return cast(Tensor, self.model(x, time / 1000, _one_hot(given.get("labels"), x, self.classes), augment))


class EDM2Net(nn.Module):
    """The network of EDM2 (arXiv:2312.02696) with its head for the uncertainty of the loss.

    `settings` are the keyword arguments of the published network: those of UNet, and `logvar_channels`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings
        arguments = dict(settings)
        channels = arguments.pop("logvar_channels", 128)
        self.unet = UNet(**arguments)
        self.logvar_fourier = MPFourier(channels)
        self.logvar_linear = MPConv(channels, 1)
        self.taps = _taps("unet", self.unet)
        self.shape = _shape(settings)
        self.classes: int = settings.get("label_dim", 0)

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        labels = _one_hot(cast("Tensor | None", cond), x, self.classes)
        output = cast(Tensor, self.unet(x, time / 1000, labels))
        if self.training:  # no loss need use the head, but under DDP all parameters want a gradient
            output = output + 0 * self.logvar(time)[:, None, None, None]
        return output

    def logvar(self, time: Tensor) -> Tensor:
        """u [B], the logarithm of the expected loss at `time` [B] = 1000 c_noise (section 2.1 and appendix A)."""
        return cast(Tensor, self.logvar_linear(self.logvar_fourier(time / 1000))).squeeze(1)

    def after_step(self) -> None:
        """Forced weight normalisation of the U-Net (eq. 66), for the trainer to call once after an update."""
        for module in self.unet.modules():
            if isinstance(module, MPConv):
                module.normalize()


def _one_hot(labels: Tensor | None, x: Tensor, classes: int) -> Tensor:
    """One-hot rows [B, classes] in the dtype of x; zeros without labels."""
    if labels is None:
        return x.new_zeros(len(x), classes)
    return (labels[:, None] == torch.arange(classes, device=x.device)).to(x.dtype)


def _shape(settings: Mapping[str, Any]) -> tuple[int, int, int]:
    return settings["img_channels"], settings["img_resolution"], settings["img_resolution"]


def _taps(name: str, body: SongUNet | DhariwalUNet | UNet) -> dict[str, str]:
    """Short names of Denoiser.features: the encoder's last block, and the last before the way up."""
    last = list(body.enc)[-1]
    return {"encoder": f"{name}.enc.{last}", "middle": f"{name}.dec.{last.split('_')[0]}_in1"}
