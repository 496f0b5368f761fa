"""The U-Nets of EDM (Karras et al., arXiv:2206.00364, appendix F.1).

SongUNet is DDPM++ or NCSN++ (Song et al., arXiv:2011.13456). DhariwalUNet is ADM (Dhariwal and Nichol,
arXiv:2105.05233). Both map these inputs to F [B, C, H, W] of EDM's preconditioning:

- `x` [B, C, H, W] is the noisy sample times c_in.
- `noise` [B] is c_noise = ln(sigma) / 4.
- `labels` [B, label_dim] are one-hot rows. A row of zeros stands for no label.
- `augment` [B, augment_dim] says how a training image was augmented. A row of zeros stands for no augmentation.

The keyword arguments, their defaults and the parameter names are those of the published checkpoints. A fresh network
has torch's initial weights, not the paper's, because its weights come from a checkpoint.

This file travels with exported weights, so it needs torch alone. diffusers runs the file again for each export that it
loads, and the names of this module then stand for new classes. Therefore no forward pass refers to a class by its name.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, scaled_dot_product_attention, silu


class Style(NamedTuple):
    """The settings in which the blocks of SongUNet and DhariwalUNet differ."""

    eps: float  # epsilon of the group norms
    skip_scale: float  # factor on the sum of the residual branch and the shortcut
    scale_shift: bool  # whether the embedding scales and shifts the second norm, or is added before it
    project: bool  # whether every shortcut that resamples has a 1x1 convolution
    head_channels: int | None  # channels of an attention head, or None for a single head


SONG = Style(eps=1e-6, skip_scale=math.sqrt(0.5), scale_shift=False, project=True, head_channels=None)
ADM = Style(eps=1e-5, skip_scale=1.0, scale_shift=True, project=False, head_channels=64)


class Resample(nn.Module):
    """A layer that doubles or halves H and W with the separable low-pass filter of coefficients `taps`."""

    resample_filter: Tensor

    def __init__(self, taps: Sequence[float], up: bool) -> None:
        super().__init__()
        self.up = up
        line = torch.tensor(taps, dtype=torch.float32)
        self.register_buffer("resample_filter", (line.outer(line) / line.sum() ** 2)[None, None])

    def forward(self, x: Tensor) -> Tensor:
        channels, padding = x.shape[1], (self.resample_filter.shape[-1] - 1) // 2
        kernel = self.resample_filter.to(x.dtype).expand(channels, 1, -1, -1)
        if self.up:  # three of four inputs of the filter are zeros, and the factor 4 makes up for them
            return conv_transpose2d(x, 4 * kernel, stride=2, padding=padding, groups=channels)
        return conv2d(x, kernel, stride=2, padding=padding, groups=channels)


class ResampleConv(Resample):
    """A resampling and then a convolution, [B, in, H, W] -> [B, out, H', W']."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, taps: Sequence[float], up: bool) -> None:
        super().__init__(taps, up)
        self.kernel = kernel
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel) / (kernel * in_channels**0.5))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(super().forward(x), self.weight, self.bias, padding=self.kernel // 2)


class ResidualDown(ResampleConv):
    """A downsampling on the residual input path of NCSN++: a convolution and then the filter.

    The convolution is padded for both, because the filter has no padding.
    """

    def forward(self, x: Tensor) -> Tensor:
        size = self.resample_filter.shape[-1]
        x = conv2d(x, self.weight, self.bias, padding=self.kernel // 2 + (size - 1) // 2)
        kernel = self.resample_filter.to(x.dtype).expand(x.shape[1], 1, -1, -1)
        return conv2d(x, kernel, stride=2, groups=x.shape[1])


def conv(
    in_channels: int, out_channels: int, kernel: int, taps: Sequence[float] = (), resample: bool | None = None
) -> nn.Module:
    """Return a convolution that keeps H and W, or that resamples, up if `resample` is True and down if it is False."""
    if resample is None:
        return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    return ResampleConv(in_channels, out_channels, kernel, taps, resample)


def norm(channels: int, eps: float) -> nn.GroupNorm:
    """Return a group norm of at most 32 groups, with at least 4 channels in each."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps)


class Block(nn.Module):
    """A residual block conditioned on the embedding, and self-attention if `attention`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        style: Style,
        dropout: float = 0.0,
        attention: bool = False,
        resample: bool | None = None,  # True is up, False is down
        taps: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__()
        self.style = style
        self.dropout = nn.Dropout(dropout)
        self.norm0 = norm(in_channels, style.eps)
        self.conv0 = conv(in_channels, out_channels, 3, taps, resample)
        self.affine = nn.Linear(emb_channels, (1 + style.scale_shift) * out_channels)
        self.norm1 = norm(out_channels, style.eps)
        self.conv1 = conv(out_channels, out_channels, 3)
        self.skip: nn.Module = nn.Identity()
        if in_channels != out_channels or (style.project and resample is not None):
            self.skip = conv(in_channels, out_channels, 1, taps, resample)
        elif resample is not None:
            self.skip = Resample(taps, resample)
        self.heads = 0
        if attention:
            self.heads = out_channels // (style.head_channels or out_channels)
            self.norm2 = norm(out_channels, style.eps)
            self.qkv = conv(out_channels, 3 * out_channels, 1)
            self.proj = conv(out_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        y = self.conv0(silu(self.norm0(x)))
        condition = self.affine(emb)[:, :, None, None]
        if self.style.scale_shift:
            scale, shift = condition.chunk(2, dim=1)
            y = silu(self.norm1(y) * (1 + scale) + shift)
        else:
            y = silu(self.norm1(y + condition))
        x = (self.skip(x) + self.conv1(self.dropout(y))) * self.style.skip_scale
        return (x + self._attend(x)) * self.style.skip_scale if self.heads else x

    def _attend(self, x: Tensor) -> Tensor:
        """Return self-attention over all positions of `x` [B, C, H, W]."""
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm2(x)).reshape(batch, self.heads, channels // self.heads, 3, height * width)
        q, k, v = qkv.permute(3, 0, 1, 4, 2)
        mixed = scaled_dot_product_attention(q, k, v)
        return cast(Tensor, self.proj(mixed.mT.reshape(x.shape)))


class PositionalEmbedding(nn.Module):
    """Sinusoidal embedding [B] -> [B, channels]: cosines, then sines, of frequencies that fall from 1 towards 1/10000.

    With `endpoint` the last frequency is 1/10000, otherwise it is a step above.
    """

    def __init__(self, channels: int, endpoint: bool) -> None:
        super().__init__()
        self.count, self.last = channels // 2, channels // 2 - endpoint

    def forward(self, noise: Tensor) -> Tensor:
        index = torch.arange(self.count, dtype=noise.dtype, device=noise.device)
        angle = noise[:, None] * 10000 ** (-index / self.last)
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """Fourier features [B] -> [B, channels]: cosines, then sines, of fixed random frequencies from N(0, 16^2)."""

    freqs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(channels // 2))

    def forward(self, noise: Tensor) -> Tensor:
        angle = 2 * math.pi * noise[:, None] * self.freqs
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class _UNet(nn.Module):
    """An encoder and a decoder of modules `block(in, out, ...)`, with a shortcut from every encoder module."""

    def __init__(
        self,
        block: partial[Block],
        resolution: int,
        in_channels: int,
        first: int,  # channels of the first convolution
        widths: Sequence[int],
        num_blocks: int,
        attn_resolutions: Sequence[int],
        attends_often: bool,  # in every block of the decoder at these resolutions, or in the last one alone
        residual_taps: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        channels, skips = first, [first]
        for level, width in enumerate(widths):
            size = resolution >> level
            name = f"{size}x{size}"
            if level == 0:
                self.enc[f"{name}_conv"] = conv(in_channels, first, 3)
            else:
                self.enc[f"{name}_down"] = block(channels, channels, resample=False)
                if residual_taps:
                    before = in_channels if level == 1 else widths[level - 2]
                    self.enc[f"{name}_aux_residual"] = ResidualDown(before, channels, 3, residual_taps, up=False)
                skips.append(channels)
            for i in range(num_blocks):
                self.enc[f"{name}_block{i}"] = block(channels, width, attention=size in attn_resolutions)
                channels = width
                skips.append(channels)
        for level, width in reversed(list(enumerate(widths))):
            size = resolution >> level
            name = f"{size}x{size}"
            if level == len(widths) - 1:
                self.dec[f"{name}_in0"] = block(channels, channels, attention=True)
                self.dec[f"{name}_in1"] = block(channels, channels)
            else:
                self.dec[f"{name}_up"] = block(channels, channels, resample=True)
            for i in range(num_blocks + 1):
                attention = size in attn_resolutions and (attends_often or i == num_blocks)
                self.dec[f"{name}_block{i}"] = block(channels + skips.pop(), width, attention=attention)
                channels = width

    def _through(self, x: Tensor, emb: Tensor) -> Tensor:
        """Run the encoder and the decoder, and return the output of the last decoder block [B, width, H, W]."""
        residual = x
        skips: list[Tensor] = []
        for name, module in self.enc.items():
            if name.endswith("_aux_residual"):
                x = skips[-1] = residual = (x + module(residual)) / math.sqrt(2)
                continue
            x = module(x) if name.endswith("_conv") else module(x, emb)
            skips.append(x)
        for name, module in self.dec.items():
            if "_aux_" not in name:
                x = module(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, emb)
        return x


class SongUNet(_UNet):
    """DDPM++ or NCSN++.

    DDPM++ has `embedding_type` "positional" and `encoder_type` "standard". NCSN++ has "fourier" and "residual".
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        emb, noise = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        widths = [model_channels * mult for mult in channel_mult]
        block = partial(Block, emb_channels=emb, style=SONG, dropout=dropout, taps=tuple(resample_filter))
        residual = tuple(resample_filter) if encoder_type == "residual" else ()
        super().__init__(
            block, img_resolution, img_channels, model_channels, widths, num_blocks, attn_resolutions, False, residual
        )
        fourier = embedding_type == "fourier"
        self.map_noise = FourierEmbedding(noise) if fourier else PositionalEmbedding(noise, endpoint=True)
        self.map_label = nn.Linear(label_dim, noise) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(noise, emb)
        self.map_layer1 = nn.Linear(emb, emb)
        name = f"{img_resolution}x{img_resolution}_aux"
        self.dec[f"{name}_norm"] = norm(widths[0], SONG.eps)
        self.dec[f"{name}_conv"] = conv(widths[0], img_channels, 3)

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        # the published weights of map_layer0 expect the sines first
        cos, sin = self.map_noise(noise).to(x.dtype).chunk(2, dim=1)
        emb = torch.cat([sin, cos], dim=1)
        if self.map_label is not None and labels is not None:
            emb = emb + self.map_label(labels * math.sqrt(labels.shape[1]))
        if self.map_augment is not None and augment is not None:
            emb = emb + self.map_augment(augment)
        emb = silu(self.map_layer1(silu(self.map_layer0(emb))))
        x = self._through(x, emb)
        *_, last_norm, last_conv = self.dec.values()
        return cast(Tensor, last_conv(silu(last_norm(x))))


class DhariwalUNet(_UNet):
    """ADM, in which the embedding scales and shifts.

    Every block at `attn_resolutions` has attention, with 64 channels in a head.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
    ) -> None:
        emb = model_channels * channel_mult_emb
        widths = [model_channels * mult for mult in channel_mult]
        block = partial(Block, emb_channels=emb, style=ADM, dropout=dropout)
        super().__init__(
            block, img_resolution, img_channels, widths[0], widths, num_blocks, attn_resolutions, attends_often=True
        )
        self.map_noise = PositionalEmbedding(model_channels, endpoint=False)
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(model_channels, emb)
        self.map_layer1 = nn.Linear(emb, emb)
        self.map_label = nn.Linear(label_dim, emb, bias=False) if label_dim else None
        self.out_norm = norm(widths[0], ADM.eps)
        self.out_conv = conv(widths[0], img_channels, 3)

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        emb = self.map_noise(noise).to(x.dtype)
        if self.map_augment is not None and augment is not None:
            emb = emb + self.map_augment(augment)
        emb = self.map_layer1(silu(self.map_layer0(emb)))
        if self.map_label is not None and labels is not None:
            emb = emb + self.map_label(labels)
        return cast(Tensor, self.out_conv(silu(self.out_norm(self._through(x, silu(emb))))))
