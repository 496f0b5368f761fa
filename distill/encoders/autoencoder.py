"""The autoencoder in the `vae/` of a teacher's folder."""

import hashlib
import math
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distill.encoders.latents import Normalisation
from distill.errors import UserError
from distill.pipeline_folder import file_hash, load_model, part_folder, pixels_per_latent, read_json

PIXELS_AT_ONCE = 2**20
"""The number of pixels that an autoencoder takes at once: one image of 1024 x 1024, or several smaller images."""


class DiffusersAutoencoder:
    """An autoencoder of diffusers: images [B, 3, H, W] in [-1, 1] to latents [B, C, h, w] of a teacher, and back.

    A subclass for videos has [B, 3, F, H, W] and [B, C, f, h, w]. It states its `classes` and its `image_shape`.

    It computes on the device of its input, in float32, or in float64 for float64 input. Its weights are loaded at the
    first use. All copies of a network share one autoencoder.

    Args:
        folder: The folder that holds `vae/`.
        normalisation: The scale of the latents. None means the scale in the autoencoder's own config,
            (z - shift_factor) scaling_factor, which the network of a pipeline takes.
        channels: The number of channels that the network takes. None skips the check.

    Raises:
        UserError: The autoencoder is of an unknown class, or its latents or the normalisation have another number of
            channels.

    Attributes:
        classes: The class names in diffusers.
    """

    classes: tuple[str, ...] = ("AutoencoderKL", "AutoencoderDC")

    def __init__(
        self, folder: str | Path, normalisation: Normalisation | None = None, channels: int | None = None
    ) -> None:
        self.folder, self.normalisation = Path(folder), normalisation
        self.config = read_json(part_folder(self.folder, "vae") / "config.json")
        kind = self.config.get("_class_name")
        if kind not in self.classes:
            raise UserError(f"teacher: '{folder}': vae must be {' or '.join(self.classes)}, got {kind!r}")
        numbers = {"vae": self.config.get("latent_channels", channels)}
        numbers |= {"latents": len(normalisation.mean)} if normalisation else {}
        for what, theirs in numbers.items():
            if channels is not None and theirs != channels:
                raise UserError(f"teacher: '{folder}': {what}: is of {theirs} channels, the network of {channels}")
        if wrong := _wrong_number(self.config):
            raise UserError(f"teacher: '{folder}': vae: {wrong}")
        self._vae: Any = None

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # a generator begins as a deep copy of the teacher, and must not load a second autoencoder

    @property
    def identity(self) -> str:
        """The SHA-256 of the autoencoder's files and of the normalisation."""
        files = file_hash(sorted(part_folder(self.folder, "vae").rglob("*")))
        stated = self.normalisation
        return hashlib.sha256(f"{files} {stated}".encode()).hexdigest() if stated else files

    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return (C, H, W) of the image of a latent of `shape`."""
        factor = pixels_per_latent(self.folder)
        return self.config.get("out_channels", 3), *(factor * side for side in shape[1:])

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images to distributions of latents, in parts of PIXELS_AT_ONCE.

        Args:
            images: [B, 3, H, W] in [-1, 1].

        Returns:
            The mean and the standard deviation of the latents, each [B, C, h, w], on the CPU. The deviation is 0 if the
            autoencoder has no distribution.
        """
        vae = self._load(images)
        shift, scale = self._shift_and_scale(vae, images.ndim - 2)
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
        """Decode latents to images, in parts of PIXELS_AT_ONCE.

        With `graph`, the backward pass computes each part again, and each block inside a part that can recompute.
        Memory then holds the activations between the blocks of one part, and those inside one block. For SDXL's
        autoencoder at 1024 x 1024 that is 14 GiB, in place of 23 GiB for each sample.

        Args:
            latents: [B, C, h, w], in the scale of the network.
            graph: Whether the images are differentiable in `latents`.

        Returns:
            Images [B, 3, H, W] on the device of `latents`, not clamped to [-1, 1].
        """
        vae = self._load(latents)
        shift, scale = self._shift_and_scale(vae, latents.ndim - 2)

        def run(some: Tensor) -> Tensor:
            return cast(Tensor, vae.decode(some / scale + shift).sample)

        size = self.image_shape(tuple(latents.shape[1:]))[1:]
        parts = latents.to(vae.dtype).split(images_at_once(size))
        if graph:  # decoding draws no random numbers, so none need be kept for the second computation
            return torch.cat([checkpoint(run, some, use_reentrant=False, preserve_rng_state=False) for some in parts])
        with torch.no_grad():
            return torch.cat([run(some) for some in parts])

    def free(self) -> None:
        """Release the autoencoder. The next use reads its files again."""
        self._vae = None

    def _shift_and_scale(self, vae: Any, dimensions: int) -> tuple[Any, Any]:
        """Return the shift and the scale of latents with so many spatial dimensions: numbers, or [C, 1, ...]."""
        config, stated = vae.config, self.normalisation
        factor = config.get("scaling_factor", 1.0)
        if stated is None and config.get("latents_mean") and config.get("latents_std"):  # as some of SDXL's do
            stated = Normalisation(config["latents_mean"], tuple(std / factor for std in config["latents_std"]))
        if stated is None:
            return config.get("shift_factor") or 0.0, factor
        mean, std = (torch.tensor(numbers, dtype=torch.float64) for numbers in (stated.mean, stated.std))
        shift, scale = (numbers.to(vae.device, vae.dtype).reshape(-1, *[1] * dimensions) for numbers in (mean, 1 / std))
        return shift, scale

    def _load(self, like: Tensor) -> Any:
        """Return the autoencoder on the device of `like`, in float64 if `like` is, otherwise in float32."""
        if self._vae is None:
            vae = load_model(part_folder(self.folder, "vae"), self.config["_class_name"], "vae", self.classes)
            self._vae = vae.requires_grad_(False)
            if self._vae._supports_gradient_checkpointing:
                self._vae.enable_gradient_checkpointing()
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        # torch's `to`, because diffusers' own warns about every dtype but float32
        return nn.Module.to(self._vae, like.device, dtype)


def _wrong_number(config: dict[str, Any]) -> str | None:
    """Return what is wrong with the numbers that scale the latents in an autoencoder's config, or None."""
    for key in ("scaling_factor", "shift_factor", "latents_mean", "latents_std"):
        value = config.get(key)
        numbers: list[Any] = value if isinstance(value, list) else [value]
        finite = all(type(one) in (int, float) and abs(one) < 1e9 for one in numbers)
        positive = key in ("shift_factor", "latents_mean") or (finite and all(one > 1e-9 for one in numbers))
        many = isinstance(value, list) == key.startswith("latents_")
        if value is not None and not (finite and positive and many):
            kind = "a list of finite numbers" if key.startswith("latents_") else "a finite number"
            sign = " above 0" if key in ("scaling_factor", "latents_std") else ""
            return f"{key}: must be {kind}{sign}, got {value!r:.80}"
    if config.get("scaling_factor", 1.0) is None:
        return "scaling_factor: must be a number above 0, got None"
    return None


def images_at_once(size: tuple[int, ...]) -> int:
    """Return the number of images of `size` (H, W) that an autoencoder takes at once."""
    return max(1, PIXELS_AT_ONCE // math.prod(size))
