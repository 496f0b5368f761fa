"""A discriminator on the features of the fake denoiser, with the losses of discriminator and generator.

The fake's own features tell real samples from generated ones (SiDA, arXiv:2410.14919; DMD2, arXiv:2405.14867). The
discriminator therefore has few parameters or none, and one pass of the fake gives both the estimate of x0 and the
logits.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, softplus

from distill.compilation import fused
from distill.conditions import ConditionLike
from distill.denoiser import Denoiser
from distill.errors import UserError, require
from distill.paths import Path
from distill.random import Random
from distill.times import Times

Want: TypeAlias = Literal["x0", "logits", "both", "uncertainty"]
"""The outputs that a Critic is asked for: the estimate of x0, the logits, both, or the uncertainty of the estimate."""
CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
"""The convolutions by their number of spatial dimensions."""


class ChannelMean(nn.Module):
    """The head of SiDA, without parameters: the mean of features [B, C, *spatial] over channels, [B, *spatial]."""

    def forward(self, features: Tensor) -> Tensor:
        return features.mean(1)


class ConvHead(nn.Module):
    """A head with one logit for each sample, [B, 1], from features [B, C, *spatial].

    4x4 convolutions of stride 2, at least one, reduce the features to 4x4 or less. A convolution over the whole rest
    follows. Each of these has a group norm and SiLU. The last layer is a 1x1 convolution. On features of 8x8 this is
    DMD2's classifier on EDM's networks (arXiv:2405.14867). One to three spatial dimensions of any size are possible.

    Features of another size may come later, as of samples in buckets. Where less is left of them than the whole rest,
    it is padded with zeros. Where more is left, the logit is the mean over all places.

    Args:
        channels: C of the features.
        size: The spatial dimensions of the features: (H, W), or (F, H, W) of a video.

    Raises:
        UserError: The features have no spatial dimension, or more than three.
    """

    def __init__(self, channels: int, *size: int) -> None:
        super().__init__()
        if len(size) not in CONVOLUTIONS:
            raise UserError(f"objective: the discriminator reads features (C, *spatial), got {(channels, *size)}")
        convolution = CONVOLUTIONS[len(size)]
        groups = math.gcd(32, max(1, channels // 4))  # a group of one channel would be 0 after a norm over 1x1
        layers: list[nn.Module] = []
        while min(size[-2:]) > 1 and (not layers or max(size) > 4):
            halved = [side > 1 for side in size]  # a video has fewer frames than rows: a single frame stays one
            kernel, stride = (tuple(n if half else 1 for half in halved) for n in (4, 2))
            layers.append(convolution(channels, channels, kernel, stride, tuple(map(int, halved))))
            layers += [nn.GroupNorm(groups, channels), nn.SiLU()]
            size = tuple(max(1, side // 2) for side in size)
        self.halvings, self.size = len(layers), size
        layers += [convolution(channels, channels, size), nn.GroupNorm(groups, channels), nn.SiLU()]
        self.layers = nn.Sequential(*layers, convolution(channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            if number == self.halvings:
                features = pad_to(features, self.size)
            features = layer(features)
        logits = features.flatten(1)
        return logits if logits.shape[1] == 1 else logits.mean(1, keepdim=True)


def pad_to(features: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return features [B, C, *spatial] with zeros around them, where a side is shorter than that of `size`."""
    missing = [max(0, least - side) for least, side in zip(size, features.shape[2:], strict=True)]
    sides = [side for one in reversed(missing) for side in (one // 2, one - one // 2)]
    return pad(features, sides) if any(missing) else features


class Heads(nn.ModuleList):
    """Several heads, each on the features at its own tap. Their logits stand side by side.

    Losses are means over the logits of a sample. Each head therefore has the same share, as in FastGen's discriminators
    (NVlabs/FastGen, `fastgen/networks/discriminators.py`).
    """

    def forward(self, *features: Tensor) -> Tensor:
        """Return the logits [B, taps] for features [B, C, *spatial] of each tap."""
        return torch.cat([head(one) for head, one in zip(self, features, strict=True)], 1)


@torch.no_grad()
def middle_tap(denoiser: Denoiser) -> str:
    """Return the tap in the middle of a denoiser's network: its short name `middle`, or else the part that is found.

    That is the part with features [B, C, ...] at whose end half of the parameters have been used, in a pass over an
    example. Parts are the children of the network, and those of its lists and sequences of modules.

    Raises:
        UserError: No part has such features.
    """
    network = denoiser.network
    if "middle" in network.taps:
        return "middle"
    shorts = {full: short for short, full in network.taps.items()}
    total, used, seen = sum(p.numel() for p in network.parameters()), 0, list[tuple[float, int, str]]()

    def count(module: nn.Module, *_: object) -> None:
        nonlocal used
        used += sum(p.numel() for p in module.parameters(recurse=False))

    def note(name: str, module: nn.Module, inputs: object, output: object) -> None:
        features = output[0] if isinstance(output, tuple) else output
        if isinstance(features, Tensor) and 3 <= features.ndim <= 1 + len(network.shape):
            seen.append((abs(used / total - 0.5), -len(seen), shorts.get(name, name)))  # the outer one of equal parts

    hooks = [module.register_forward_hook(count) for module in network.modules()]
    for holder, module in network.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) or holder in ("", "module"):
            for child, part in module.named_children():
                name = f"{holder}.{child}".lstrip(".")
                hooks.append(part.register_forward_hook(partial(note, name)))
    try:
        _example_pass(denoiser)
    finally:
        for hook in hooks:
            hook.remove()
    seen = [one for one in seen if one[2] != "module"]
    if not seen:
        raise UserError(f"tap: {network.display_name} has no part with features for a discriminator; name a submodule")
    return min(seen)[2]


def _example_pass(denoiser: Denoiser, tap: str | None = None) -> Tensor:
    """Return the features at `tap` in a pass over an example of the network's input, or the estimate without a tap."""
    network = denoiser.network
    parameter = next(network.parameters())
    x_t = torch.zeros(1, *network.shape, dtype=parameter.dtype, device=parameter.device)
    t = denoiser.path.time(torch.ones(1, dtype=torch.float64))
    cond = network.example(1).to(x_t.device, x_t.dtype)
    if tap is None:
        return cast(Tensor, denoiser(x_t, t, cond))
    (features,) = denoiser.features(x_t, t, cond, tap)
    denoiser.remove_taps()  # so that they come after the hooks of sharding, which a pass that ends at a tap needs
    return features


@torch.no_grad()
def feature_shape(denoiser: Denoiser, tap: str) -> tuple[int, ...]:
    """Return the shape (C, *spatial) of the features at `tap`, from a pass over an example of the network's input.

    Raises:
        UserError: The network has no submodule of this name.
    """
    return tuple(_example_pass(denoiser, tap).shape[1:])


class Critic(nn.Module):
    """The fake with a discriminator: a denoiser and a head on the features of its network.

    Args:
        denoiser: The fake denoiser.
        tap: The submodule whose features the head reads (see Denoiser.with_features), or several.
        head: A module from features [B, C, *spatial], of each tap, to logits [B, ...].

    Raises:
        UserError: A tap is no submodule, or is there twice.
    """

    def __init__(self, denoiser: Denoiser, tap: str | Sequence[str], head: nn.Module) -> None:
        super().__init__()
        self.denoiser, self.head = denoiser, head
        self.taps = (tap,) if isinstance(tap, str) else tuple(tap)
        denoiser.check_taps(self.taps)

    def forward(
        self, x_t: Tensor, t: Tensor, cond: ConditionLike = None, want: Want = "x0", features_of: Any = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the estimate of x0, the logits, both, or the uncertainty of the estimate.

        Args:
            x_t: Noisy samples [B, ...], real or generated.
            t: Times [B] on the path.
            cond: The condition [B, ...].
            want: "x0" returns the estimate [B, ...], and "uncertainty" that of the estimate [B], as the denoiser does.
                "logits" returns the logits [B, ...], and the network runs no further than the last tap. "both" returns
                (estimate, logits) from one pass.
            features_of: A denoiser of the same network. The head reads its features, in a pass up to the last tap. None
                for the fake's own features.

        Returns:
            The estimate and the logits are float32, or float64 where `x_t` is. Logits are positive for samples that
            look real.
        """
        if want in ("x0", "uncertainty"):
            return cast(Tensor, self.denoiser(x_t, t, cond, want))
        if want == "logits":
            return self._logits(*(features_of or self.denoiser).features(x_t, t, cond, *self.taps))
        if features_of is not None:
            return self.denoiser(x_t, t, cond), self._logits(*features_of.features(x_t, t, cond, *self.taps))
        x0, *features = self.denoiser.with_features(x_t, t, cond, *self.taps)
        return x0, self._logits(*features)

    def _logits(self, *features: Tensor) -> Tensor:
        """Return the head's logits [B, ...] for features [B, C, *spatial] of each tap."""
        # A sharded head is not compiled here, as its denoiser is not: its weights are gathered by hooks.
        return cast(Tensor, self.head(*features) if self.denoiser.compiled is None else _apply(self.head, *features))


@fused
def _apply(head: nn.Module, *features: Tensor) -> Tensor:
    """Return the logits of a head."""
    return cast(Tensor, head(*features))


def conv_critic(denoiser: Denoiser, tap: str | Sequence[str]) -> Critic:
    """Return a denoiser with a ConvHead on its features at `tap`, or one on each of several taps.

    The tap `middle` is found where it has no name.

    Raises:
        UserError: A tap is no submodule, is there twice, or has features that no convolution reads.
    """
    names = (tap,) if isinstance(tap, str) else tap
    taps = [middle_tap(denoiser) if name == "middle" else name for name in names]
    heads = [ConvHead(*feature_shape(denoiser, tap)) for tap in taps]
    return Critic(denoiser, taps, heads[0] if len(heads) == 1 else Heads(heads))


def mean_logit(logits: Tensor) -> Tensor:
    """Return the mean [B] over the logits [B, ...] of each sample."""
    return logits.flatten(1).mean(1)


@fused
def discriminator_loss(fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Return the discriminator's two losses, softplus(l_fake) and softplus(-l_real), [B] each.

    Each is a mean over the logits of a sample.

    Args:
        fake: The logits [B, ...] of generated samples.
        real: The logits [B, ...] of real samples.
    """
    return softplus(fake).flatten(1).mean(1), softplus(-real).flatten(1).mean(1)


@fused
def adversarial_loss(fake: Tensor) -> Tensor:
    """Return the generator's non-saturating loss softplus(-l_fake), [B], for logits [B, ...] of generated samples.

    It is a mean over the logits of a sample.
    """
    return softplus(-fake).flatten(1).mean(1)


@fused
def accuracy(fake: Tensor, real: Tensor) -> Tensor:
    """Return the discriminator's accuracy in [0, 1], [B], over the logits [B, ...] of generated and real samples."""
    return ((fake < 0).double().flatten(1).mean(1) + (real > 0).double().flatten(1).mean(1)) / 2


@dataclass(frozen=True, kw_only=True)
class R1:
    """The R1 penalty weight/2 |d l/d real|^2 of the discriminator, for the mean logit l of a sample (arXiv:1801.04406).

    Attributes:
        weight: The weight of the penalty. 0 turns it off.
        noise: At 0, autograd gives the exact slope, so the loss is differentiated twice. Above 0, it is the standard
            deviation of normal noise on the real samples, and the penalty is the square of a finite difference, with
            the same mean. That costs one more pass and no second derivative. FastGen does the same, but does not
            divide by noise^2.
    """

    weight: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("weight", self.weight), ("noise", self.noise)):
            require(value >= 0, f"{name}: must be at least 0, got {value}")

    def judge(self, logits_of: Callable[[Tensor], Tensor], real: Tensor, random: Random) -> tuple[Tensor, Tensor]:
        """Return the logits of the real samples, and the penalty.

        Args:
            logits_of: A function from samples [B, ...] to the discriminator's logits [B, ...].
            real: Real samples [B, ...].
            random: The random numbers of the samples, for the finite difference.

        Returns:
            The logits [B, ...] and the penalty [B].
        """
        if not self.weight:
            return logits_of(real), real.new_zeros(len(real))
        if self.noise:
            moved = real + self.noise * random.normal(*real.shape[1:], dtype=real.dtype)
            logits, moved_logits = logits_of(real), logits_of(moved)
            slope = ((mean_logit(moved_logits) - mean_logit(logits)) / self.noise)[:, None]
        else:
            real = real.detach().requires_grad_()
            # Neither the fused kernels of attention nor compiled functions can be differentiated twice.
            with sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"):
                logits = logits_of(real)
                (slope,) = torch.autograd.grad(mean_logit(logits).sum(), real, create_graph=True)
        return logits, self.weight / 2 * (slope**2).flatten(1).sum(1)


@dataclass(frozen=True)
class LowerPart(Times):
    """The part of the law `times` below its quantile `share`, which is a scalar tensor in (0, 1]."""

    times: Times
    share: Tensor

    def nsr(self, u: Tensor, path: Path) -> Tensor:
        return self.times.nsr(u.to(self.share.device) * self.share, path)


@dataclass(frozen=True, kw_only=True)
class AdaptiveNoise:
    """Diffusion-GAN's adaptive range of noise for the discriminator (arXiv:2206.02262).

    The range is the lower part of a law of times, up to a share of it. The share grows while the discriminator is sure
    of the real samples, E sign(l(real)) > `target`, and shrinks otherwise.

    Attributes:
        target: The certainty at which the share stays as it is.
        low: The smallest share, and the share at the start.
        high: The largest share.
        images: The number of images in which the share moves by 1.
    """

    target: float = 0.6  # the paper's d_target, unverified
    low: float = 0.01  # t_min 10 of 1000 steps, unverified
    high: float = 1.0
    images: int = 100_000  # unverified

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise UserError(f"low, high: must satisfy 0 < low <= high <= 1, got {self.low} and {self.high}")
        require(self.images > 0, f"images: must be positive, got {self.images}")

    def start(self) -> dict[str, Tensor]:
        """Return the memory at the start: the share, and the number of images at its last move. Both are scalars."""
        return {"share": torch.tensor(self.low, dtype=torch.float64), "images": torch.tensor(0.0, dtype=torch.float64)}

    def adapt(self, share: Tensor, last: Tensor, certainty: Tensor, images: int) -> None:
        """Move the share, in place.

        Args:
            share: The share in the memory.
            last: The number of images at the last move, in the memory. It becomes `images`.
            certainty: The mean of sign(l(real)) over the samples of all processes.
            images: The number of images that the generator has trained on.
        """
        direction = (certainty - self.target).sign()  # sign(NaN) is 0: the share stays after a broken update
        share.add_(direction * (images - last) / self.images).clamp_(self.low, self.high)
        last.fill_(images)
