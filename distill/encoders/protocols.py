"""The interfaces of the encoders between data and a teacher.

A network that takes prompts has the attribute `text_encoder`. A network whose samples are latents has `autoencoder`.
Neither encoder loads weights before its first use, because its results may already be in a cache under its `identity`.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor


class Encoder(Protocol):
    """An encoder whose weights are loaded at their first use."""

    @property
    def identity(self) -> str:
        """A hash of the weights and settings, computed without loading the weights."""

    def free(self) -> None:
        """Release the weights."""


class TextEncoder(Encoder, Protocol):
    """An encoder of prompts to conditions, which are mappings of tensors as the network takes them."""

    device: Any
    """The device on which the encoder is loaded and runs."""

    def encode(self, prompts: list[str], /) -> Mapping[str, Tensor]:
        """Return the conditions [N, ...] of N prompts. Each condition depends on its own prompt alone."""

    def encode_null(self) -> Mapping[str, Tensor]:
        """Return the condition [1, ...] that stands for no prompt."""


class Autoencoder(Encoder, Protocol):
    """An encoder of images [N, C, *spatial] in [-1, 1] to latents [N, c, *spatial], with a decoder.

    The latents are in the scale in which the network takes them. Both run on the device of their input.
    """

    def encode(self, images: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation of the latents. The deviation is 0 if there is no distribution."""

    def decode(self, latents: Tensor, /, graph: bool = False) -> Tensor:
        """Return images, not clamped to [-1, 1]. With `graph` they are differentiable in `latents`."""

    def image_shape(self, shape: tuple[int, ...], /) -> tuple[int, ...]:
        """Return (C, *spatial) of the image of a latent of `shape`."""
