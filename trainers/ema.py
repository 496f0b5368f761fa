"""Moving averages of a network's parameters."""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import nn

from distill.power_ema import PowerProfile
from trainers.run import Average, PowerEMA
from trainers.sharding import local, twin


class EMA:
    """A copy of `module` that follows it by the half-life or the power function that is its `rule`.

    Parameters that are `kept` as they are it shares, buffers are copied; of a sharded one it holds its shards. With a
    ramp-up of the half-life (SiD; EDM, arXiv:2206.00364, appendix F.2), and by a power function always, the first
    update copies the parameters.
    """

    def __init__(self, module: nn.Module, rule: Average | PowerProfile, kept: Container[str] = ()) -> None:
        self.module = twin(module, kept).requires_grad_(False).eval()
        self.rule, self.kept = rule, kept
        both = zip(self.module.named_parameters(), module.parameters(), strict=True)
        self._pairs = [(old, new) for (name, old), new in both if name not in kept]
        self._buffers = list(zip(self.module.buffers(), module.buffers(), strict=True))

    @torch.no_grad()
    def update(self, images: int, batch_size: int) -> None:
        """Move towards the module, `images` being the count before this update of `batch_size` images."""
        old, new = zip(*[(local(old), local(new)) for old, new in self._pairs], strict=True)
        torch._foreach_lerp_(old, new, 1 - self.rule.beta(images, batch_size))
        for target, source in self._buffers:
            target.copy_(source)


def power_averages(module: nn.Module, settings: PowerEMA | None, kept: Container[str] = ()) -> dict[float, EMA]:
    """One average of `module` for each relative width."""
    return {std: EMA(module, PowerProfile(std), kept) for std in settings.stds} if settings else {}
