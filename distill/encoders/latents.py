"""The normalisation of latents."""

import math
from dataclasses import dataclass

from distill.errors import UserError


@dataclass(frozen=True)
class Normalisation:
    """The scale in which a network takes latents: (z - mean) / std of the autoencoder's z.

    Attributes:
        mean: One number for each channel.
        std: One positive number for each channel.

    Raises:
        UserError: The means and stds differ in number or are not finite, or a std is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if not finite or len(self.mean) != len(self.std) or not min(self.std, default=0) > 0:
            given = f"{list(self.mean)} and {list(self.std)}"
            raise UserError(f"latents: must have as many finite means as positive stds, got {given:.120}")
