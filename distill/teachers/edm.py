"""EDM's and EDM2's networks as what Denoiser calls: (x [B, C, H, W] scaled by c_in, time [B] = 1000 c_noise, cond) ->
F [B, C, H, W]. Their state dicts are those of the published checkpoints.

`cond` is labels int64 [B], or None, or for EDM a mapping of `labels` and `augment` [B, augment_dim]. A label outside
0 ... classes-1 is the null condition: a row of zeros in place of the one-hot row. `null` is `classes` where the network
was trained with it, else None.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from distill.denoiser import Condition
from distill.errors import UserError
from distill.networks.edm2_unet import Block as MPBlock
from distill.networks.edm2_unet import MPConv, MPFourier, UNet
from distill.networks.edm_unet import Block, DhariwalUNet, SongUNet
from distill.networks.recompute import recompute

BODIES = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
VARIANTS = {  # those of the published checkpoints
    "model_type": tuple(BODIES),
    "embedding_type": ("positional", "fourier"),
    "encoder_type": ("standard", "residual"),
    "decoder_type": ("standard",),
}


class EDMNet(nn.Module):
    """DDPM++, NCSN++ or ADM as EDM uses them (arXiv:2206.00364).

    `settings` are the keyword arguments of the published network: those of SongUNet or DhariwalUNet, and `model_type`,
    which says whose. Raises UserError for settings that do not make a network.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        for name, allowed in VARIANTS.items():
            if name in settings and settings[name] not in allowed:
                raise UserError(f"{name}: must be one of {', '.join(allowed)}, got {settings[name]!r}")
        model_type = settings.get("model_type", "DhariwalUNet")
        _check(settings, BODIES[model_type], {"model_type": model_type})
        self.settings = settings
        self.model = BODIES[model_type](**{name: value for name, value in settings.items() if name != "model_type"})
        self.taps = _taps("model", self.model)
        self.shape = _shape(settings)
        self.classes: int = settings.get("label_dim", 0)
        self.null: int | None = None
        self.augment_dim: int = settings.get("augment_dim", 0)

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        given = cond if isinstance(cond, Mapping) else {"labels": cond}
        augment = given.get("augment")
        if augment is None:  # zeros still reach the weights: under DDP all parameters want a gradient
            augment = x.new_zeros(x.shape[0], self.augment_dim)
        return cast(Tensor, self.model(x, time / 1000, _one_hot(given.get("labels"), x, self.classes), augment))

    def enable_gradient_checkpointing(self) -> None:
        """Let every block recompute its activations in backward passes."""
        _recompute_blocks(self.model)


class EDM2Net(nn.Module):
    """The network of EDM2 (arXiv:2312.02696) with its head for the uncertainty of the loss.

    `settings` are the keyword arguments of the published network: those of UNet, and `logvar_channels`.
    Raises UserError for settings that do not make a network.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        _check(settings, UNet, {"logvar_channels": 128})
        self.settings = settings
        channels = settings.get("logvar_channels", 128)
        self.unet = UNet(**{name: value for name, value in settings.items() if name != "logvar_channels"})
        self.logvar_fourier = MPFourier(channels)
        self.logvar_linear = MPConv(channels, 1)
        self.taps = _taps("unet", self.unet)
        self.shape = _shape(settings)
        self.classes: int = settings.get("label_dim", 0)
        self.null: int | None = None

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        labels = _one_hot(cast("Tensor | None", cond), x, self.classes)
        output = cast(Tensor, self.unet(x, time / 1000, labels))
        if self.training:  # no loss need use the head, but under DDP all parameters want a gradient
            output = output + 0 * self.logvar(time)[:, None, None, None]
        return output

    def logvar(self, time: Tensor) -> Tensor:
        """u [B], the logarithm of the expected loss at `time` [B] = 1000 c_noise (section 2.1 and appendix A)."""
        return cast(Tensor, self.logvar_linear(self.logvar_fourier(time / 1000))).squeeze(1)

    def enable_gradient_checkpointing(self) -> None:
        """Let every block recompute its activations in backward passes."""
        _recompute_blocks(self.unet)

    def after_step(self) -> None:
        """Forced weight normalisation of the U-Net (eq. 66), for the trainer to call once after an update."""
        for module in self.unet.modules():
            if isinstance(module, MPConv):
                module.normalize()


def _recompute_blocks(body: SongUNet | DhariwalUNet | UNet) -> None:
    for module in (*body.enc.values(), *body.dec.values()):
        if isinstance(module, Block | MPBlock):
            recompute(module)


def _one_hot(labels: Tensor | None, x: Tensor, classes: int) -> Tensor:
    """One-hot rows [B, classes] in the dtype of x; zeros without labels."""
    if labels is None:
        return x.new_zeros(x.shape[0], classes)
    return (labels[:, None] == torch.arange(classes, device=x.device)).to(x.dtype)


def _check(settings: Mapping[str, Any], body: type[nn.Module], own: Mapping[str, Any]) -> None:
    """Raise UserError, before anything is built, for missing and unknown names and for values beyond reason."""
    parameters = inspect.signature(body).parameters
    required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    examples = {**{name: 1 if name in required else p.default for name, p in parameters.items()}, **own}
    for name in required:
        if name not in settings:
            raise UserError(f"{name}: is missing")
    for name, value in settings.items():
        if name not in examples:
            raise UserError(f"{name}: is no setting of {body.__name__}, whose are {', '.join(examples)}")
        if not _is_like(value, examples[name]):
            raise UserError(f"{name}: must be something like {examples[name]}, got {str(value)[:80]!r}")
    levels, resolution = len(settings.get("channel_mult", examples["channel_mult"])), settings["img_resolution"]
    if not levels or not resolution or resolution % 2 ** (levels - 1):
        raise UserError(f"img_resolution: {resolution} cannot be halved {levels - 1} times, as channel_mult says")
    if settings.get("num_blocks", 1) > 64:
        raise UserError(f"num_blocks: must be at most 64, got {settings['num_blocks']}")


def _is_like(value: object, example: object) -> bool:
    """Of the type of `example` and of a reasonable size."""
    if isinstance(example, tuple):
        entries = value if isinstance(value, list | tuple) else [None] * 99
        return len(entries) <= 16 and all(_is_like(entry, example[0]) for entry in entries)
    if isinstance(example, str):
        return isinstance(value, str)
    numbers = (int, float) if isinstance(example, float) else (int,)
    return type(value) in numbers and 0 <= cast(float, value) <= 65536


def _shape(settings: Mapping[str, Any]) -> tuple[int, int, int]:
    return settings["img_channels"], settings["img_resolution"], settings["img_resolution"]


def _taps(name: str, body: SongUNet | DhariwalUNet | UNet) -> dict[str, str]:
    """Short names of Denoiser.features: the encoder's last block, and the last before the way up."""
    last = list(body.enc)[-1]
    return {"encoder": f"{name}.enc.{last}", "middle": f"{name}.dec.{last.split('_')[0]}_in1"}
