"""Exponential moving averages of a network's parameters."""

from __future__ import annotations

import copy

import torch
from torch import nn

from trainers.run import Average


class EMA:
    """A copy of `module` that follows it with a half-life in images.

    Buffers are copied. With `ramp_up` the half-life is at most that fraction of the images seen before the update,
    so the first update copies the parameters (SiD; EDM, arXiv:2206.00364, appendix F.2).
    """

    def __init__(self, module: nn.Module, average: Average) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.average = average
        self._pairs = list(zip(self.module.parameters(), module.parameters(), strict=True))
        self._buffers = list(zip(self.module.buffers(), module.buffers(), strict=True))

    def beta(self, images: int, batch_size: int) -> float:
        """The factor kept of the old average in the update after `images` images."""
        half_life = self.average.half_life
        if self.average.ramp_up:
            half_life = min(half_life, self.average.ramp_up * images)
        return 0.5 ** (batch_size / max(half_life, 1e-8))

    @torch.no_grad()
    def update(self, images: int, batch_size: int) -> None:
        """Move towards the module, `images` being the count before this update of `batch_size` images."""
        old, new = zip(*self._pairs, strict=True)
        torch._foreach_lerp_(old, new, 1 - self.beta(images, batch_size))
        for target, source in self._buffers:
            target.copy_(source)
