"""The parts of a diffusers pipeline around its network: prompts to conditions, images to latents and back.

Each is known by the hash of its files before anything is loaded, so that what it has made can be kept and found again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.denoiser import Denoiser
from distill.errors import UserError, one_line
from distill.teachers.families import Conditions, Family
from distill.teachers.pipeline import INDEX, family_of, load_part, part, read_json

AUTOENCODERS = ("AutoencoderKL", "AutoencoderDC")


class TextEncoder:
    """Prompts -> text conditions, as the pipeline's own `encode_prompt` makes them with its tokenizers and encoders.

    Loaded with its first use, on `device` and in `dtype`; `free` lets go of it. Raises UserError for a pipeline without
    prompts.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu", dtype: Any = torch.float32) -> None:
        self.folder, self.device, self.dtype = Path(folder), device, dtype
        family = family_of(self.folder)
        if not (issubclass(family, Family) and family.text):
            raise UserError(f"teacher: '{folder}': a {family.__name__} takes no prompts")
        self.family = family
        self._pipe: Any = None

    @property
    def identity(self) -> str:
        """SHA-256 of the encoders and tokenizers."""
        kept = [p for p in sorted(self.folder.iterdir()) if p.name.startswith(("text_encoder", "tokenizer"))]
        return file_hash([self.folder / INDEX, *(file for place in kept for file in sorted(place.rglob("*")))])

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Conditions:
        """Conditions [N, ...] of N prompts, on the CPU."""
        return {name: value.cpu() for name, value in self.family.encode(self._loaded(), prompts).items()}

    @torch.no_grad()
    def encode_null(self) -> Conditions:
        """What stands for no prompt [1, ...] in the pipeline's own guidance, on the CPU."""
        return {name: value.cpu() for name, value in self.family.encode_null(self._loaded()).items()}

    def free(self) -> None:
        """Let go of the encoders."""
        self._pipe = None

    def _loaded(self) -> Any:
        if self._pipe is None:
            parts = [name for name, held in read_json(self.folder / INDEX).items() if isinstance(held, list)]
            unused = {name: None for name in parts if not name.startswith(("text_encoder", "tokenizer", "scheduler"))}
            self._pipe = load_stock(self.folder, **unused, dtype=self.dtype).to(self.device)
        return self._pipe


class Codec:
    """Images [B, 3, H, W] in [-1, 1] <-> scaled latents [B, C, h, w], by the pipeline's autoencoder in float32.

    Latents are (z - shift_factor) scaling_factor, as the pipeline's network takes them.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu") -> None:
        self.folder, self.device = Path(folder), device
        self._vae: Any = None

    @property
    def identity(self) -> str:
        """SHA-256 of the autoencoder."""
        return file_hash(sorted(part(self.folder, "vae").rglob("*")))

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents' distribution, on the CPU; the latter is 0 where there is none."""
        encoded = self._loaded().encode(images.to(self.device, torch.float32))
        distribution = getattr(encoded, "latent_dist", None)
        mean = encoded.latent if distribution is None else distribution.mean
        std = torch.zeros_like(mean) if distribution is None else distribution.std
        scale, shift = self._affine()
        return ((mean - shift) * scale).cpu(), (std * scale).cpu()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images, unclamped, on the device of `latents`."""
        scale, shift = self._affine()
        images: Tensor = self._loaded().decode(latents.to(self.device, torch.float32) / scale + shift).sample
        return images.to(latents.device)

    def free(self) -> None:
        """Let go of the autoencoder."""
        self._vae = None

    def _affine(self) -> tuple[float, float]:
        config: Mapping[str, Any] = self._loaded().config
        return config["scaling_factor"], config.get("shift_factor") or 0.0

    def _loaded(self) -> Any:
        if self._vae is None:
            self._vae = load_part(self.folder, "vae", AUTOENCODERS).to(self.device).requires_grad_(False)
        return self._vae


def with_parts(denoiser: Denoiser, folder: Path) -> Denoiser:
    """A denoiser of the pipeline in `folder` whose network knows its text encoder and its codec, where it has them."""
    network = denoiser.network
    if isinstance(network, Family):
        network.codec = Codec(folder)
        network.text_encoder = TextEncoder(folder) if network.text else None
    return denoiser


def load_stock(folder: Path, **arguments: Any) -> Any:
    """The stock pipeline in `folder`, in eval mode; raises UserError when diffusers cannot load it."""
    from diffusers import DiffusionPipeline

    try:
        pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True, **arguments)
    except Exception as error:  # diffusers and transformers raise their own kinds
        raise UserError(f"teacher: diffusers cannot load '{folder}': {one_line(error)}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def file_hash(files: list[Path]) -> str:
    """SHA-256 over the names and contents of files."""
    total = hashlib.sha256()
    for file in files:
        if file.is_file():
            with file.open("rb") as opened:
                total.update(
                    f"{file.parent.name}/{file.name} {hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode()
                )
    return total.hexdigest()
