"""The autoencoder of latents that a teacher's folder holds in `vae/`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distill.encoders.latents import Normalisation
from distill.errors import UserError
from distill.pipeline_folder import file_hash, load_model, part_folder, pixels_per_latent, read_json

AUTOENCODERS = ("AutoencoderKL", "AutoencoderDC")
PIXELS_AT_ONCE = 2**20
"""Pixels of the images that an autoencoder takes at once: one image of 1024 x 1024, or as many smaller ones."""


class DiffusersAutoencoder:
    """Images [B, 3, H, W] in [-1, 1] to latents [B, C, h, w] as a teacher's network takes them, and back.

    Latents are scaled as `normalisation` says. Without one they are scaled as the autoencoder's own config says, which
    is what the network of a pipeline takes: (z - shift_factor) scaling_factor. It computes in float32, or in float64
    for float64 input, on the device of its input. The first use loads it. Copies of a network share it.

    Raises:
        UserError: The autoencoder is of another class, or its latents have another number of `channels`.
    """

    def __init__(
        self, folder: str | Path, normalisation: Normalisation | None = None, channels: int | None = None
    ) -> None:
        self.folder, self.normalisation = Path(folder), normalisation
        self.config = read_json(part_folder(self.folder, "vae") / "config.json")
        kind = self.config.get("_class_name")
        if kind not in AUTOENCODERS:
            raise UserError(f"teacher: '{folder}': vae must be {' or '.join(AUTOENCODERS)}, got {kind!r}")
        numbers = {"vae": self.config.get("latent_channels", channels)}
        numbers |= {"latents": len(normalisation.mean)} if normalisation else {}
        for what, theirs in numbers.items():
            if channels is not None and theirs != channels:
                raise UserError(f"teacher: '{folder}': {what}: is of {theirs} channels, the network of {channels}")
        self._vae: Any = None

    def __deepcopy__(self, memo: Any) -> DiffusersAutoencoder:
        return self

    @property
    def identity(self) -> str:
        """The SHA-256 of the autoencoder and of the normalisation."""
        files = file_hash(sorted(part_folder(self.folder, "vae").rglob("*")))
        stated = self.normalisation
        return hashlib.sha256(f"{files} {stated}".encode()).hexdigest() if stated else files

    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return (C, H, W) of the image of a latent of `shape`."""
        factor = pixels_per_latent(self.folder)
        return self.config.get("out_channels", 3), *(factor * side for side in shape[1:])

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the latents, on the CPU; a deviation of 0 is no distribution."""
        vae = self._load(images)
        shift, scale = self._shift_and_scale(vae)
        means, stds = [], []
        for some in images.to(vae.dtype).split(images_at_once(images.shape[2:])):
            encoded = vae.encode(some)
            distribution = getattr(encoded, "latent_dist", None)
            mean = encoded.latent if distribution is None else distribution.mean
            std = torch.zeros_like(mean) if distribution is None else distribution.std
            means.append(((mean - shift) * scale).cpu())
            stds.append((std * scale).cpu())
        return torch.cat(means), torch.cat(stds)

    def decode(self, latents: Tensor, graph: bool = False) -> Tensor:
        """Return images, unclamped, on the device of `latents`; with `graph` they are differentiable in `latents`.

        Images are decoded some at a time (PIXELS_AT_ONCE). With a graph, each part is computed once more in the
        backward pass, and in it each block that can recompute. Memory then holds the activations between the blocks of
        one part and those of one block: 14 GiB for SDXL's autoencoder at 1024 x 1024 instead of 23 a sample.
        """
        vae = self._load(latents)
        shift, scale = self._shift_and_scale(vae)

        def run(some: Tensor) -> Tensor:
            images: Tensor = vae.decode(some / scale + shift).sample
            return images

        size = self.image_shape(tuple(latents.shape[1:]))[1:]
        parts = latents.to(vae.dtype).split(images_at_once(size))
        if graph:
            return torch.cat([checkpoint(run, some, use_reentrant=False, preserve_rng_state=False) for some in parts])
        with torch.no_grad():
            return torch.cat([run(some) for some in parts])

    def free(self) -> None:
        """Release the autoencoder; the next use reads its files again."""
        self._vae = None

    def _shift_and_scale(self, vae: Any) -> tuple[Any, Any]:
        """Return (shift, scale), numbers or [C, 1, 1]: a latent is (z - shift) scale."""
        config: Mapping[str, Any] = vae.config
        stated, factor = self.normalisation, config["scaling_factor"]
        if stated is None and config.get("latents_mean") and config.get("latents_std"):  # some of SDXL's autoencoders
            stated = Normalisation(config["latents_mean"], tuple(std / factor for std in config["latents_std"]))
        if stated is None:
            return config.get("shift_factor") or 0.0, factor
        mean, std = (torch.tensor(numbers, dtype=torch.float64)[:, None, None] for numbers in (stated.mean, stated.std))
        return mean.to(vae.device, vae.dtype), (1 / std).to(vae.device, vae.dtype)

    def _load(self, like: Tensor) -> Any:
        if self._vae is None:
            place, kind = part_folder(self.folder, "vae"), self.config["_class_name"]
            self._vae = load_model(place, kind, "vae", AUTOENCODERS).requires_grad_(False)
            if self._vae._supports_gradient_checkpointing:
                self._vae.enable_gradient_checkpointing()
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        return nn.Module.to(self._vae, like.device, dtype)  # diffusers' own warns of every dtype but float32


def images_at_once(size: tuple[int, ...]) -> int:
    """Return the number of images of `size` (H, W) that an autoencoder takes at once."""
    return max(1, PIXELS_AT_ONCE // math.prod(size))
