"""The scale of latents."""

from __future__ import annotations

import math
from dataclasses import dataclass

from distill.errors import UserError


@dataclass(frozen=True)
class Normalisation:
    """Latents as a network takes them: (z - mean) / std, one number a channel, for z as the autoencoder gives it.

    Raises:
        UserError: The numbers are not as many finite means as positive standard deviations.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if not finite or len(self.mean) != len(self.std) or not min(self.std, default=0) > 0:
            given = f"{list(self.mean)} and {list(self.std)}"
            raise UserError(f"latents: must have as many finite means as positive stds, got {given:.120}")
