"""The magnitude-preserving U-Net of EDM2 (Karras et al., arXiv:2312.02696, to which the equation numbers refer).

Activations keep unit magnitude by construction: every weight is normalised at each use, and sums, concatenations and
non-linearities are rescaled. The keyword arguments, their defaults and the parameter names are those of the published
checkpoints.

This file travels with exported weights, so it needs torch alone. diffusers runs the file again for each export that it
loads, and the names of this module then stand for new classes. Therefore no forward pass refers to a class by its name.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, dropout, interpolate, linear, scaled_dot_product_attention, silu


def normalize(x: Tensor, dim: tuple[int, ...]) -> Tensor:
    """Scale `x` to unit root mean square over `dim`, in float32 or float64.

    EDM2's 1e-4 in the denominator prevents a division by zero.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = torch.linalg.vector_norm(wide, dim=dim, keepdim=True)
    count = math.prod([x.shape[i] for i in dim])
    return cast(Tensor, wide / (1e-4 + norm * math.sqrt(1 / count)))


def mp_silu(x: Tensor) -> Tensor:
    """Return SiLU of `x`, divided by its root mean square for unit normal input (eq. 81)."""
    return silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Return (1 - t) a + t b, rescaled to unit variance if `a` and `b` have unit variance (eq. 88)."""
    return a.lerp(b, t) / math.hypot(1 - t, t)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Concatenate `a` and `b` along channels (eq. 103).

    Their shares of the variance follow from `t`, and do not depend on their numbers of channels.
    """
    n, m = a.shape[1], b.shape[1]
    scale = math.sqrt(n + m) / math.hypot(1 - t, t)
    return torch.cat([(1 - t) * scale / math.sqrt(n) * a, t * scale / math.sqrt(m) * b], dim=1)


class MPFourier(nn.Module):
    """Fourier features [B] -> [B, channels]: sqrt(2) cos with fixed random frequencies and phases (eq. 75)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, noise: Tensor) -> Tensor:
        return math.sqrt(2) * (noise[:, None] * self.freqs + self.phases).cos()


class MPConv(nn.Module):
    """A convolution, or a linear map if `kernel` is empty, with its weight normalised at each use (eq. 47).

    The weight of each output channel has unit norm over its inputs.
    """

    def __init__(self, in_channels: int, out_channels: int, *kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        weight = self._unit() * (gain / math.sqrt(self.weight[0].numel()))
        weight = weight.to(x.dtype)
        return linear(x, weight) if weight.ndim == 2 else conv2d(x, weight, padding=weight.shape[-1] // 2)

    @torch.no_grad()
    def normalize(self) -> None:
        """Normalise the stored weight itself.

        This is forced weight normalisation (eq. 66), which is due once after each optimizer step. It writes in place,
        because the optimizer holds this parameter.
        """
        self.weight.copy_(self._unit())

    def _unit(self) -> Tensor:
        return normalize(self.weight, tuple(range(1, self.weight.ndim)))


class BlockSettings(NamedTuple):
    """The settings that all blocks of a network share."""

    dropout: float
    res_balance: float  # share t of the residual branch in its sum
    attn_balance: float  # share t of the attention in its sum
    channels_per_head: int
    clip_act: float  # bound on activations


class MPBlock(nn.Module):
    """An encoder or decoder block (figure 21): resampling, a residual branch, and self-attention if `attention`."""

    def __init__(
        self,
        emb_channels: int,
        decoder: bool,
        settings: BlockSettings,
        in_channels: int,
        out_channels: int,
        attention: bool = False,
        resample: bool | None = None,  # True is up, False is down
    ) -> None:
        super().__init__()
        self.decoder, self.settings, self.resample = decoder, settings, resample
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.emb_linear = MPConv(emb_channels, out_channels)
        self.conv_res0 = MPConv(in_channels if decoder else out_channels, out_channels, 3, 3)
        self.conv_res1 = MPConv(out_channels, out_channels, 3, 3)
        self.conv_skip = MPConv(in_channels, out_channels, 1, 1) if in_channels != out_channels else None
        self.heads = out_channels // settings.channels_per_head if attention else 0
        if self.heads:
            self.attn_qkv = MPConv(out_channels, 3 * out_channels, 1, 1)
            self.attn_proj = MPConv(out_channels, out_channels, 1, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.resample is not None:
            x = interpolate(x, scale_factor=2, mode="nearest") if self.resample else avg_pool2d(x, 2)
        if not self.decoder:
            x = x if self.conv_skip is None else self.conv_skip(x)
            x = normalize(x, (1,)).to(x.dtype)
        y = self.conv_res0(mp_silu(x))
        y = mp_silu(y * (1 + self.emb_linear(emb, gain=self.emb_gain))[:, :, None, None].to(y.dtype))
        y = self.conv_res1(dropout(y, self.settings.dropout, self.training))
        if self.decoder and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, self.settings.res_balance)
        if self.heads:
            x = mp_sum(x, self._attend(x), self.settings.attn_balance)
        return x.clamp(-self.settings.clip_act, self.settings.clip_act)

    def _attend(self, x: Tensor) -> Tensor:
        """Return cosine attention: queries, keys and values are normalised over the channels of their head."""
        batch, channels, height, width = x.shape
        qkv = self.attn_qkv(x).reshape(batch, self.heads, channels // self.heads, 3, height * width)
        q, k, v = normalize(qkv, (2,)).to(x.dtype).permute(3, 0, 1, 4, 2)
        mixed = scaled_dot_product_attention(q, k, v)
        return cast(Tensor, self.attn_proj(mixed.mT.reshape(x.shape)))


class EDM2UNet(nn.Module):
    """The U-Net: (x [B, C, H, W], noise [B], labels [B, label_dim]) -> F [B, C, H, W].

    `x` is the noisy sample times c_in, and `noise` is c_noise = ln(sigma) / 4. `labels` are one-hot rows, and a row of
    zeros stands for no label.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        channels_per_head: int = 64,
        clip_act: float = 256.0,
    ) -> None:
        super().__init__()
        self.label_balance, self.concat_balance = label_balance, concat_balance
        widths = [model_channels * mult for mult in channel_mult]
        noise = model_channels * channel_mult_noise if channel_mult_noise else widths[0]
        emb = model_channels * channel_mult_emb if channel_mult_emb else max(widths)
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = MPFourier(noise)
        self.emb_noise = MPConv(noise, emb)
        self.emb_label = MPConv(label_dim, emb) if label_dim else None
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        settings = BlockSettings(dropout, res_balance, attn_balance, channels_per_head, clip_act)
        down: Callable[..., MPBlock] = partial(MPBlock, emb, False, settings)
        up: Callable[..., MPBlock] = partial(MPBlock, emb, True, settings)
        channels, skips = widths[0], [widths[0]]
        for level, width in enumerate(widths):
            size = img_resolution >> level
            name = f"{size}x{size}"
            if level == 0:
                self.enc[f"{name}_conv"] = MPConv(img_channels + 1, channels, 3, 3)
            else:
                self.enc[f"{name}_down"] = down(channels, channels, resample=False)
                skips.append(channels)
            for i in range(num_blocks):
                self.enc[f"{name}_block{i}"] = down(channels, width, attention=size in attn_resolutions)
                channels = width
                skips.append(channels)
        for level, width in reversed(list(enumerate(widths))):
            size = img_resolution >> level
            name = f"{size}x{size}"
            if level == len(widths) - 1:
                self.dec[f"{name}_in0"] = up(channels, channels, attention=True)
                self.dec[f"{name}_in1"] = up(channels, channels)
            else:
                self.dec[f"{name}_up"] = up(channels, channels, resample=True)
            for i in range(num_blocks + 1):
                self.dec[f"{name}_block{i}"] = up(channels + skips.pop(), width, attention=size in attn_resolutions)
                channels = width
        self.out_conv = MPConv(channels, img_channels, 3, 3)

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        emb = self.emb_noise(self.emb_fourier(noise).to(x.dtype))
        if self.emb_label is not None and labels is not None:
            emb = mp_sum(emb, self.emb_label(labels * math.sqrt(labels.shape[1])), self.label_balance)
        emb = mp_silu(emb)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)  # this channel of ones replaces biases
        skips = []
        for name, module in self.enc.items():
            x = module(x) if name.endswith("_conv") else module(x, emb)
            skips.append(x)
        for name, module in self.dec.items():
            x = module(mp_cat(x, skips.pop(), self.concat_balance) if "_block" in name else x, emb)
        return cast(Tensor, self.out_conv(x, gain=self.out_gain))
