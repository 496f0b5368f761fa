"""The interfaces of the encoders between data and a teacher.

A network that takes prompts has the attribute `text_encoder`; a network whose samples are latents has `autoencoder`.
Neither loads weights before its first use, because what it computes is kept in a cache and found by its `identity`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor


class Encoder(Protocol):
    """An encoder whose weights are loaded at their first use."""

    @property
    def identity(self) -> str:
        """A hash of weights and settings, computed without loading the weights."""

    def free(self) -> None:
        """Release the weights."""


class TextEncoder(Encoder, Protocol):
    """Prompts to conditions, each a mapping of tensors as the network takes them."""

    device: Any
    """The device on which it runs once it is loaded."""

    def encode(self, prompts: list[str], /) -> Mapping[str, Tensor]:
        """Return the conditions [N, ...] of N prompts. Each condition follows from its own prompt alone."""

    def encode_null(self) -> Mapping[str, Tensor]:
        """Return the condition that stands for no prompt, [1, ...]."""


class Autoencoder(Encoder, Protocol):
    """Images [N, C, *spatial] in [-1, 1] to latents [N, c, *spatial] in the units of the network's samples, and back.

    It runs on the device of its input.
    """

    def encode(self, images: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the latents; the deviation is 0 where there is no distribution."""

    def decode(self, latents: Tensor, /, graph: bool = False) -> Tensor:
        """Return images, unclamped; with `graph` they are differentiable in `latents`."""

    def image_shape(self, shape: tuple[int, ...], /) -> tuple[int, ...]:
        """Return (C, *spatial) of the image of a latent of `shape`."""
