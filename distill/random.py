"""Randomness as a function: every number is a hash of (seed, streams, sample index, element), never a state.

A resumed run, another micro-batch size and another number of processes therefore draw the same samples.
The hash is splitmix64 (Steele, Lea, Flood 2014; finaliser constants of Stafford's variant 13), written with
wrapping int64 arithmetic so that it gives the same bits on every device.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's own is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """A bijection of int64 whose output bits each depend on all input bits."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


@dataclass(frozen=True)
class Random:
    """Independent random numbers for a batch: one key a sample, int64 [B]."""

    keys: Tensor

    @classmethod
    def at(cls, seed: int, index: Tensor) -> Random:
        """The numbers of samples `index` (int64 [B], their global position in the run) under `seed`."""
        return cls(_mix(_mix(torch.full_like(index, seed) + _GOLDEN) + index * _GOLDEN))

    def stream(self, name: str) -> Random:
        """An independent family of numbers for the same samples, told apart by `name`."""
        return Random(_mix(self.keys ^ _mix(torch.full_like(self.keys, zlib.crc32(name.encode())) + _GOLDEN)))

    def bits(self, count: int) -> Tensor:
        """Int64 [B, count], 64 random bits each: splitmix64 started at every sample's key."""
        steps = torch.arange(1, count + 1, device=self.keys.device) * _GOLDEN
        return _mix(self.keys[:, None] + steps)

    def uniform(self, *shape: int) -> Tensor:
        """Float64 [B, *shape], uniform on the open interval (0, 1): quantile functions stay finite."""
        bits = _shift(self.bits(math.prod(shape)), 12)
        return ((bits.double() + 0.5) * 2.0**-52).reshape(-1, *shape)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """[B, *shape] standard normal by Box and Muller (1958), two numbers from 64 bits."""
        count = math.prod(shape)
        bits = self.bits((count + 1) // 2)
        work = torch.promote_types(dtype, torch.float32)  # half precision cannot hold 32-bit integers
        first = (_shift(bits, 32).to(work) + 0.5) * 2.0**-32
        angle = (bits & 0xFFFFFFFF).to(work) * (2 * math.pi * 2.0**-32)
        radius = (-2 * first.log()).clamp_(min=0).sqrt_()  # float32 rounds the last 128 of 2^32 values to 1: radius 0
        normal = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]
        return normal.reshape(-1, *shape).to(dtype)


def expand(value: Tensor, like: Tensor) -> Tensor:
    """[B] to [B, 1, ...], so that it multiplies `like` [B, ...]."""
    return value.reshape(-1, *[1] * (like.ndim - 1))
