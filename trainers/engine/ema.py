"""Moving averages of a network's parameters."""

from collections.abc import Callable, Container
from functools import partial

import torch
from torch import nn

from distill.power_ema import PowerProfile
from trainers.engine.sharding import copy_sharded_like, is_sharded, local
from trainers.recipe.run import Average, PowerEMA

Beta = Callable[[int, int], float]
"""(images before the update, images of the update) -> the factor of the old average in it."""


class EMA:
    """A moving average of a module's parameters, held in a copy of the module.

    The copy shares the parameters of `frozen_names` with the module. Buffers are copied at every update. The average
    of a sharded module holds this rank's shards.

    Args:
        module: The network to average.
        beta: The factor of the old average in an update. At 0 the update copies the parameters.
        frozen_names: The parameters that do not train.

    Attributes:
        module: The averaged network, frozen and in eval mode.
    """

    def __init__(self, module: nn.Module, beta: Beta, frozen_names: Container[str] = ()) -> None:
        self.module = copy_sharded_like(module, frozen_names).requires_grad_(False).eval()
        self.beta, self.frozen_names = beta, frozen_names
        both = zip(self.module.named_parameters(), module.parameters(), strict=True)
        self._pairs = [(old, new) for (name, old), new in both if name not in frozen_names]
        self._sharded = is_sharded(module)
        self._buffers = list(zip(self.module.buffers(), module.buffers(), strict=True))

    @torch.no_grad()
    def update(self, images: int, batch_size: int) -> None:
        """Move the average towards the module, after an update of `batch_size` images.

        Args:
            images: The images before the update.
            batch_size: The images of the update.
        """
        # The rows of this rank alone: an average needs no communication.
        pairs = [(local(old), local(new)) for old, new in self._pairs] if self._sharded else self._pairs
        old, new = zip(*pairs, strict=True)
        # In place, so that `module` keeps its parameters; torch's private foreach form takes few kernel launches.
        torch._foreach_lerp_(old, new, 1 - self.beta(images, batch_size))
        for target, source in self._buffers:
            target.copy_(source)


def half_life_beta(settings: Average, images: int, batch_size: int) -> float:
    """Return the factor of the old average under a half-life (SiD's rule, from EDM, arXiv:2206.00364, appendix F.2).

    With a ramp-up the half-life is at most a fraction of the images seen. The first update then copies the parameters.

    Args:
        settings: The half-life in images, and the ramp-up.
        images: The images before the update.
        batch_size: The images of the update.
    """
    half_life = min(settings.half_life, settings.ramp_up * images) if settings.ramp_up else settings.half_life
    return float(0.5 ** (batch_size / max(half_life, 1e-8)))  # a half-life of 0 gives 0, not a division by 0


def average(module: nn.Module, settings: Average, frozen_names: Container[str] = ()) -> EMA:
    """Return the average of `module` with the half-life of a recipe."""
    return EMA(module, partial(half_life_beta, settings), frozen_names)


def power_averages(module: nn.Module, settings: PowerEMA | None, frozen_names: Container[str] = ()) -> dict[float, EMA]:
    """Return one average of `module` for each relative width (EDM2, arXiv:2312.02696)."""
    return {std: EMA(module, PowerProfile(std).beta, frozen_names) for std in settings.stds} if settings else {}
