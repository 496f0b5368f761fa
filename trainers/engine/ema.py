"""Moving averages of a network's parameters."""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import nn

from distill.power_ema import PowerProfile
from trainers.engine.sharding import copy_sharded_like, local
from trainers.recipe.run import Average, PowerEMA


class EMA:
    """A copy of `module` that follows it by its `rule`, a half-life or a power function.

    The copy shares the parameters of `frozen_names` with the module; buffers are copied. Of a sharded module it holds
    this rank's shards. The first update copies the parameters under a power function, and under a half-life with a
    ramp-up (SiD; EDM, arXiv:2206.00364, appendix F.2).
    """

    def __init__(self, module: nn.Module, rule: Average | PowerProfile, frozen_names: Container[str] = ()) -> None:
        self.module = copy_sharded_like(module, frozen_names).requires_grad_(False).eval()
        self.rule, self.frozen_names = rule, frozen_names
        both = zip(self.module.named_parameters(), module.parameters(), strict=True)
        self._pairs = [(old, new) for (name, old), new in both if name not in frozen_names]
        self._buffers = list(zip(self.module.buffers(), module.buffers(), strict=True))

    @torch.no_grad()
    def update(self, images: int, batch_size: int) -> None:
        """Move towards the module, `images` being the count before this update of `batch_size` images."""
        old, new = zip(*[(local(old), local(new)) for old, new in self._pairs], strict=True)
        torch._foreach_lerp_(old, new, 1 - self.rule.beta(images, batch_size))
        for target, source in self._buffers:
            target.copy_(source)


def power_averages(module: nn.Module, settings: PowerEMA | None, frozen_names: Container[str] = ()) -> dict[float, EMA]:
    """One average of `module` for each relative width."""
    return {std: EMA(module, PowerProfile(std), frozen_names) for std in settings.stds} if settings else {}
