"""Random numbers without a state: each is a hash of the seed, the streams, the sample's index and the element.

A run therefore draws the same numbers after a resume, with another micro-batch size, and on another number of
processes. The hash is splitmix64 (Steele, Lea, Flood 2014, with the finaliser constants of Stafford's variant 13). Its
int64 arithmetic wraps around, so that every device gives the same bits.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.compilation import fused

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(x: Tensor, bits: int) -> Tensor:
    """Return the logical right shift of int64 `x`. The shift of torch repeats the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """Return a bijection of int64 in which each output bit depends on all input bits."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


@dataclass(frozen=True)
class Random:
    """Independent random numbers for the samples of a batch.

    Attributes:
        keys: The key of each sample, int64 [B]. They are on the host while a run trains, and so are uniform numbers:
            times and positions that depend on them need no kernel.
        device: The device of normal numbers, which are as many as the elements of a sample. None for that of the keys.
    """

    keys: Tensor
    device: torch.device | None = None

    @classmethod
    def at(cls, seed: int, index: Tensor, device: torch.device | None = None) -> Random:
        """Return the random numbers of some samples of a run.

        Args:
            seed: The seed of the run.
            index: The positions of the samples in the whole run, int64 [B], on the device of the keys.
            device: The device of normal numbers. None for that of the keys.
        """
        return cls(_mix(_mix(torch.full_like(index, seed) + _GOLDEN) + index * _GOLDEN), device)

    @classmethod
    def of(cls, values: Tensor) -> Random:
        """Return random numbers that are a function of each sample of `values` [B, ...] alone, and of all its bits.

        Samples that differ have independent numbers, whatever the batch that they lie in.
        """
        rows = values.detach().flatten(1)
        rows = rows if rows.dtype == torch.float64 else rows.float()
        bits = rows.view(torch.int64 if rows.dtype == torch.float64 else torch.int32).long()
        places = torch.arange(1, bits.shape[1] + 1, device=bits.device) * _GOLDEN
        return cls(_mix(_mix(_mix(bits) + places).sum(1)))

    def stream(self, name: str) -> Random:
        """Return further random numbers for the same samples. Streams of different names are independent."""
        keys = _mix(self.keys ^ _mix(torch.full_like(self.keys, zlib.crc32(name.encode())) + _GOLDEN))
        return Random(keys, self.device)

    def bits(self, count: int) -> Tensor:
        """Return 64 random bits each, int64 [B, count], by splitmix64 from each sample's key, on its device."""
        steps = torch.arange(1, count + 1, device=self.keys.device) * _GOLDEN
        return _mix(self.keys[:, None] + steps)

    def uniform(self, *shape: int) -> Tensor:
        """Return uniform numbers on the open interval (0, 1), float64 [B, *shape], so that quantiles are finite."""
        bits = _shift(self.bits(math.prod(shape)), 12)  # 52 bits and the half below fill the 53 bits of a float64
        return ((bits.double() + 0.5) * 2.0**-52).reshape(-1, *shape)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return standard normal numbers [B, *shape] in `dtype`.

        The method of Box and Muller (1958) makes two numbers from 64 bits.
        """
        keys = self.keys if self.device is None else to_device(self.keys, self.device, dtype)
        work = torch.promote_types(dtype, torch.float32)  # half precision cannot represent 32-bit integers
        return _normals(keys, math.prod(shape), work).reshape(-1, *shape).to(dtype)


@fused
def _normals(keys: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Return `count` standard normal numbers for each of `keys` [B], [B, count]."""
    bits = Random(keys).bits((count + 1) // 2)
    first = (_shift(bits, 32).to(dtype) + 0.5) * 2.0**-32
    angle = (bits & 0xFFFFFFFF).to(dtype) * (2 * math.pi * 2.0**-32)
    # float32 rounds the largest 128 of the 2^32 values to 1. The clamp keeps their radius at 0, and out of NaN.
    radius = (-2 * first.log()).clamp(min=0).sqrt()
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]


def expand(value: Tensor, like: Tensor) -> Tensor:
    """Return `value` [B] as [B, 1, ...], with as many dimensions as `like` [B, ...]."""
    return value.reshape(-1, *[1] * (like.ndim - 1))


def to_device(value: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return `value` on `device`, and in `dtype` where it is a floating-point tensor."""
    value = value.to(dtype) if value.is_floating_point() else value  # before the copy, which is smaller then
    if device.type == "cuda" and value.device.type == "cpu":  # the host does not wait for a copy from pinned memory
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)
