"""The networks of EDM and EDM2 as teachers.

They map (x [B, C, H, W], time [B], condition) to F [B, C, H, W] of EDM's preconditioning, where x is the noisy sample
times c_in, and time is 1000 c_noise. Their state dicts are those of the published checkpoints.

The condition is empty, or holds `labels`, int64 [B]. EDM's may also hold `augment` [B, augment_dim]. A label outside
0 ... classes-1 is the null condition, which is a row of zeros in place of a one-hot row.
"""

import inspect
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from distill.conditions import AUGMENT, Condition
from distill.errors import UserError, one_line, options
from distill.networks.edm2_unet import EDM2UNet, MPBlock, MPConv, MPFourier
from distill.networks.edm_unet import Block, DhariwalUNet, SongUNet
from distill.networks.network import Network, null_label
from distill.networks.recompute import recompute
from distill.teachers.weights_file import read_weights, save_weights
from distill.weights import fill

BODIES = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
LARGEST = 65536  # of a number among the settings
VARIANTS = {  # the values that published checkpoints have
    "model_type": tuple(BODIES),
    "embedding_type": ("positional", "fourier"),
    "encoder_type": ("standard", "residual"),
    "decoder_type": ("standard",),
}


class PublishedNetwork(Network):
    """A network whose weights have the names of the authors' checkpoints.

    Args:
        body: The class of the body.
        own: The settings that are not the body's, each with an example of its value.
        settings: The keyword arguments of the published network.

    Attributes:
        settings: The keyword arguments of the published network.
        kind: The name of this kind in denoiser.json.
        source: The module of `distill.networks` that travels with its exports.
        published_body: The attribute of the authors' class that holds the body, and the classes that the body may have.
    """

    pipeline_export = "code"
    casts_weights = True
    settings: dict[str, Any]
    kind: ClassVar[str]
    source: ClassVar[str]
    published_body: ClassVar[tuple[str, tuple[str, ...]]]

    def __init__(self, body: type[nn.Module], own: Mapping[str, Any], settings: dict[str, Any]) -> None:
        super().__init__()
        _check(settings, body, own)
        self.settings, inner = settings, self.published_body[0]
        try:
            self.add_module(inner, body(**{name: value for name, value in settings.items() if name not in own}))
        except Exception as error:  # numbers that do not go together fail anywhere in torch
            raise UserError(f"network: {body.__name__} cannot be made of these settings: {one_line(error)}") from error
        last = list(self.body.enc)[-1]  # type: ignore[arg-type]
        # the last block of the encoder, and the last block before the decoder's upsampling
        self.taps = {"encoder": f"{inner}.enc.{last}", "middle": f"{inner}.dec.{last.split('_')[0]}_in1"}
        side = settings["img_resolution"]  # the published networks are square
        self.shape = settings["img_channels"], side, side
        self.classes = settings.get("label_dim", 0)

    @property
    def body(self) -> nn.Module:
        """The network without its preconditioning, which travels with exports."""
        return cast(nn.Module, getattr(self, self.published_body[0]))

    @classmethod
    def build(cls, settings: Mapping[str, Any], state: Mapping[str, Tensor] | None) -> Self:
        """Return a network with the weights `state`, in float32 and eval mode.

        Args:
            settings: The keyword arguments of the published network.
            state: Its state dict, or None for a network on the meta device.

        Raises:
            UserError: The settings make no network, or the weights do not fit it.
        """
        try:
            with torch.device("meta"):
                network = cls(**settings)
        except UserError:
            raise
        except Exception as error:  # numbers that do not go together fail anywhere in torch
            raise UserError(f"network: its settings make no network: {one_line(error)}") from error
        if state is not None:
            fill(network, state)
        return network.eval()

    def description(self) -> dict[str, Any]:
        return {"name": self.kind, **self.settings}

    def save(self, folder: Path) -> None:
        save_weights(self, folder)

    @classmethod
    def load(cls, folder: Path, description: Mapping[str, Any], weights: bool = True) -> Self:
        settings = {name: value for name, value in description["network"].items() if name != "name"}
        network = cls.build(settings, read_weights(folder) if weights else None)
        network.null = null_label(description.get("null"))
        return network

    def enable_gradient_checkpointing(self) -> None:
        """Make every block recompute its activations in the backward pass."""
        for module in (*self.body.enc.values(), *self.body.dec.values()):  # type: ignore[operator]
            if isinstance(module, Block | MPBlock):
                recompute(module)


class EDMNet(PublishedNetwork):
    """DDPM++, NCSN++ or ADM as EDM uses them (arXiv:2206.00364).

    Args:
        settings: The keyword arguments of SongUNet or DhariwalUNet, and `model_type`, which names one of the two.

    Raises:
        UserError: The settings make no network.
    """

    kind = "edm"
    source = "edm_unet"
    authors_class = "EDMPrecond"
    published_body = ("model", tuple(BODIES))

    def __init__(self, **settings: Any) -> None:
        for name, allowed in VARIANTS.items():
            if name in settings and settings[name] not in allowed:
                raise UserError(f"{name}: must be one of {', '.join(allowed)}, got {reprlib.repr(settings[name])}")
        model_type = settings.get("model_type", "DhariwalUNet")
        super().__init__(BODIES[model_type], {"model_type": model_type}, settings)
        self.augment_dim: int = settings.get("augment_dim", 0)

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        augment = cond.get(AUGMENT)
        if augment is None:  # zeros, since under DDP every parameter must have a gradient
            augment = x.new_zeros(x.shape[0], self.augment_dim)
        return cast(Tensor, self.body(x, time / 1000, _one_hot(cond.labels, x, self.classes), augment))


class EDM2Net(PublishedNetwork):
    """The network of EDM2 (arXiv:2312.02696), with its head that predicts the uncertainty of the loss.

    Args:
        settings: The keyword arguments of UNet, and `logvar_channels`, the number of Fourier features of the head.

    Raises:
        UserError: The settings make no network.
    """

    kind = "edm2"
    source = "edm2_unet"
    authors_class = "Precond"
    predicts_uncertainty = True
    published_body = ("unet", ("UNet",))

    def __init__(self, **settings: Any) -> None:
        super().__init__(EDM2UNet, {"logvar_channels": 128}, settings)
        channels = settings.get("logvar_channels", 128)
        self.logvar_fourier = MPFourier(channels)
        self.logvar_linear = MPConv(channels, 1)

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        output = cast(Tensor, self.body(x, time / 1000, _one_hot(cond.labels, x, self.classes)))
        # Under DDP every parameter that trains must have a gradient, also when no loss uses the head.
        if self.logvar_linear.weight.requires_grad and torch.is_grad_enabled():
            output = output + 0 * self.logvar(time)[:, None, None, None]
        return output

    def logvar(self, time: Tensor) -> Tensor:
        """Return u [B], the log of the expected loss at `time` [B] = 1000 c_noise (EDM2, section 2.1, appendix A)."""
        return cast(Tensor, self.logvar_linear(self.logvar_fourier(time / 1000))).squeeze(1)

    def after_step(self) -> None:
        """Normalise the weights (eq. 66). The trainer calls this once after each update."""
        for module in self.modules():
            if isinstance(module, MPConv):
                module.normalize()


def _one_hot(labels: Tensor | None, x: Tensor, classes: int) -> Tensor:
    """Return one-hot rows [B, classes] in the dtype of `x`, or rows of zeros without labels."""
    if labels is None:
        return x.new_zeros(x.shape[0], classes)
    return (labels[:, None] == torch.arange(classes, device=x.device)).to(x.dtype)


def _check(settings: Mapping[str, Any], body: type[nn.Module], own: Mapping[str, Any]) -> None:
    """Raise UserError for settings that are missing, unknown or unreasonable, before anything is built.

    Args:
        settings: The keyword arguments to check.
        body: The class of the network's body, whose signature states the names and the kinds of values.
        own: Further settings, each with an example of its value.
    """
    parameters = inspect.signature(body).parameters
    required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    examples = {**{name: 1 if name in required else p.default for name, p in parameters.items()}, **own}
    if missing := [name for name in required if name not in settings]:
        raise UserError(f"{missing[0]}: is missing")
    for name, value in settings.items():
        if name not in examples:
            raise UserError(f"{name}: is no setting of {body.__name__}, whose are {options(examples, name)}")
        if not _is_like(value, examples[name]):
            raise UserError(f"{name}: must be something like {examples[name]}, got {_shown(value)!r}")
    levels, resolution = len(settings.get("channel_mult", examples["channel_mult"])), settings["img_resolution"]
    if not levels or not resolution or resolution % 2 ** (levels - 1):
        raise UserError(f"img_resolution: {resolution} cannot be halved {levels - 1} times, as channel_mult says")
    widest = settings.get("model_channels", 1) * max(settings.get("channel_mult", (1,)))
    if not 1 <= widest <= LARGEST:
        raise UserError(f"channel_mult: the widest level must have 1 to {LARGEST:,} channels, got {widest:,}")
    if not 0 <= settings.get("dropout", 0) <= 1:
        raise UserError(f"dropout: must be from 0 to 1, got {settings['dropout']}")
    if settings.get("num_blocks", 1) > 64:
        raise UserError(f"num_blocks: must be at most 64, got {settings['num_blocks']}")


def _shown(value: object) -> str:
    """Return the beginning of a value as text, also if it is a list of lists that would be long without end."""
    return (str(value) if isinstance(value, str | int | float) else reprlib.repr(value))[:80]


def _is_like(value: object, example: object) -> bool:
    """Return whether `value` has the type of `example` and a reasonable size."""
    if isinstance(example, tuple):
        entries = value if isinstance(value, list | tuple) else [None] * 99  # 99 are refused below
        return len(entries) <= 16 and all(_is_like(entry, example[0]) for entry in entries)
    if isinstance(example, str):
        return isinstance(value, str)
    numbers = (int, float) if isinstance(example, float) else (int,)
    return type(value) in numbers and 0 <= cast(float, value) <= LARGEST


PUBLISHED: dict[str, type[PublishedNetwork]] = {kind.kind: kind for kind in (EDMNet, EDM2Net)}
"""The networks, by their name in denoiser.json."""
