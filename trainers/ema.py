"""Moving averages of a network's parameters."""

from __future__ import annotations

import copy

import torch
from torch import nn

from distill.power_ema import PowerProfile
from trainers.run import Average, PowerEMA


class EMA:
    """A copy of `module` that follows it by the half-life or the power function that is its `rule`.

    Buffers are copied. With a ramp-up of the half-life (SiD; EDM, arXiv:2206.00364, appendix F.2), and by a power
    function always, the first update copies the parameters.
    """

    def __init__(self, module: nn.Module, rule: Average | PowerProfile) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.rule = rule
        self._pairs = list(zip(self.module.parameters(), module.parameters(), strict=True))
        self._buffers = list(zip(self.module.buffers(), module.buffers(), strict=True))

    @torch.no_grad()
    def update(self, images: int, batch_size: int) -> None:
        """Move towards the module, `images` being the count before this update of `batch_size` images."""
        old, new = zip(*self._pairs, strict=True)
        torch._foreach_lerp_(old, new, 1 - self.rule.beta(images, batch_size))
        for target, source in self._buffers:
            target.copy_(source)


def power_averages(module: nn.Module, settings: PowerEMA | None) -> dict[float, EMA]:
    """One average of `module` for each relative width."""
    return {std: EMA(module, PowerProfile(std)) for std in settings.stds} if settings else {}
