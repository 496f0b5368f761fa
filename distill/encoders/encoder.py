"""What stands between data and a teacher: encoders of prompts, and of images where its samples are latents.

A network that takes prompts has the attribute `text_encoder`, one whose samples are latents `autoencoder`. Neither loads
anything before its first use, for what it gives is kept and found again by its `identity`.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

from torch import Tensor

from distill.denoiser import Denoiser


class Encoder(Protocol):
    """Weights that are loaded with their first use."""

    identity: str
    """A hash of weights and settings, known without loading them."""

    def free(self) -> None:
        """Let go of the weights."""


class TextEncoder(Encoder, Protocol):
    """Prompts -> conditions, each a mapping of tensors as the network takes them."""

    device: Any
    """Where it works, once it loads."""

    def encode(self, prompts: list[str], /) -> dict[str, Tensor]:
        """Conditions [N, ...] of N prompts; each follows from its prompt alone."""

    def encode_null(self) -> dict[str, Tensor]:
        """What stands for no prompt, [1, ...]."""


class Autoencoder(Encoder, Protocol):
    """Images [N, C, H, W] in [-1, 1] <-> latents [N, c, h, w] in the units of the network's samples. It works where
    what it is given is."""

    def encode(self, images: Tensor, /) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents; the latter is 0 where they are no distribution."""

    def decode(self, latents: Tensor, /, graph: bool = False) -> Tensor:
        """Images, unclamped; with `graph` differentiable in `latents`."""

    def image_shape(self, shape: tuple[int, int, int], /) -> tuple[int, int, int]:
        """(C, H, W) of the image of a latent of `shape`."""


def text_encoder(denoiser: Denoiser) -> TextEncoder | None:
    """The encoder of its prompts; None where it takes none."""
    return getattr(denoiser.network, "text_encoder", None)


def autoencoder(denoiser: Denoiser) -> Autoencoder | None:
    """What makes its latents of images and images of its latents; None where it has none."""
    return getattr(denoiser.network, "codec", None)


def image_shape(denoiser: Denoiser) -> tuple[int, int, int] | None:
    """(C, H, W) of its samples as images, decoded where they are latents; None where nothing decodes them."""
    shape = cast(tuple[int, int, int], denoiser.network.shape)
    if not denoiser.latents:
        return shape
    decoder = autoencoder(denoiser)
    return None if decoder is None else decoder.image_shape(shape)
