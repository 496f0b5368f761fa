"""The parts of a teacher around its network: prompts to conditions, images to latents and back.

Each is known by the hash of its files before anything is loaded, so that what it has made can be kept and found again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distill.denoiser import Denoiser, Normalisation
from distill.errors import UserError, one_line
from distill.teachers.families import Conditions, Family
from distill.teachers.pipeline import INDEX, compression, family_of, load_model, part, read_json

AUTOENCODERS = ("AutoencoderKL", "AutoencoderDC")
PIXELS = 2**20
"""Of images that an autoencoder takes at once: one of 1024 x 1024, or as many smaller ones."""


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


class Autoencoder:
    """Images [B, 3, H, W] in [-1, 1] <-> latents [B, C, h, w] as a teacher's network takes them, by the autoencoder in
    the folder's `vae/`.

    Latents are scaled as `normalisation` says; without one as the autoencoder's own config does, which is what a
    pipeline's network takes: (z - shift_factor) scaling_factor. Computed in float32, or float64 where that is given,
    where the given tensor is. The first use loads it, `free` lets go of it. Copies of a network share it. Raises
    UserError for an autoencoder of another class or of other latents than `channels`.
    """

    def __init__(
        self, folder: str | Path, normalisation: Normalisation | None = None, channels: int | None = None
    ) -> None:
        self.folder, self.normalisation = Path(folder), normalisation
        self.config = read_json(part(self.folder, "vae") / "config.json")
        kind = self.config.get("_class_name")
        if kind not in AUTOENCODERS:
            raise UserError(f"teacher: '{folder}': vae must be {' or '.join(AUTOENCODERS)}, got {kind!r}")
        numbers = {"vae": self.config.get("latent_channels", channels)}
        numbers |= {"latents": len(normalisation.mean)} if normalisation else {}
        for what, theirs in numbers.items():
            if channels is not None and theirs != channels:
                raise UserError(f"teacher: '{folder}': {what}: is of {theirs} channels, the network of {channels}")
        self._vae: Any = None

    def __deepcopy__(self, memo: Any) -> Autoencoder:
        return self

    @property
    def identity(self) -> str:
        """SHA-256 of the autoencoder and of the normalisation."""
        files = file_hash(sorted(part(self.folder, "vae").rglob("*")))
        stated = self.normalisation
        return hashlib.sha256(f"{files} {stated}".encode()).hexdigest() if stated else files

    def image_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, H, W) of the image of a latent of `shape`."""
        factor = compression(self.folder)
        return self.config.get("out_channels", 3), factor * shape[1], factor * shape[2]

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents' distribution, on the CPU; the latter is 0 where there is none."""
        vae = self._loaded(images)
        shift, scale = self._affine(vae)
        means, stds = [], []
        for some in images.to(vae.dtype).split(at_once(*images.shape[2:])):
            encoded = vae.encode(some)
            distribution = getattr(encoded, "latent_dist", None)
            mean = encoded.latent if distribution is None else distribution.mean
            std = torch.zeros_like(mean) if distribution is None else distribution.std
            means.append(((mean - shift) * scale).cpu())
            stds.append((std * scale).cpu())
        return torch.cat(means), torch.cat(stds)

    def decode(self, latents: Tensor, graph: bool = False) -> Tensor:
        """Images, unclamped, on the device of `latents`, of which with `graph` they are a differentiable function.

        Some are decoded at once (PIXELS). With a graph each such part runs once more in the backward pass, and in it
        each block that can: held are one part's activations between blocks and one block's, 14 GiB of SDXL's at
        1024 x 1024 in place of 23 a sample.
        """
        vae = self._loaded(latents)
        shift, scale = self._affine(vae)

        def run(some: Tensor) -> Tensor:
            images: Tensor = vae.decode(some / scale + shift).sample
            return images

        _, height, width = self.image_shape((latents.shape[1], latents.shape[2], latents.shape[3]))
        parts = latents.to(vae.dtype).split(at_once(height, width))
        if graph:
            return torch.cat([checkpoint(run, some, use_reentrant=False, preserve_rng_state=False) for some in parts])
        with torch.no_grad():
            return torch.cat([run(some) for some in parts])

    def free(self) -> None:
        """Let go of the autoencoder; the next use reads its files again."""
        self._vae = None

    def _affine(self, vae: Any) -> tuple[Any, Any]:
        """(shift, scale), numbers or [C, 1, 1]: a latent is (z - shift) scale."""
        config: Mapping[str, Any] = vae.config
        stated, factor = self.normalisation, config["scaling_factor"]
        if stated is None and config.get("latents_mean") and config.get("latents_std"):  # some of SDXL's
            stated = Normalisation(config["latents_mean"], tuple(std / factor for std in config["latents_std"]))
        if stated is None:
            return config.get("shift_factor") or 0.0, factor
        mean, std = (torch.tensor(numbers, dtype=torch.float64)[:, None, None] for numbers in (stated.mean, stated.std))
        return mean.to(vae.device, vae.dtype), (1 / std).to(vae.device, vae.dtype)

    def _loaded(self, like: Tensor) -> Any:
        if self._vae is None:
            place, kind = part(self.folder, "vae"), self.config["_class_name"]
            self._vae = load_model(place, kind, "vae", AUTOENCODERS).requires_grad_(False)
            if self._vae._supports_gradient_checkpointing:
                self._vae.enable_gradient_checkpointing()
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        return nn.Module.to(self._vae, like.device, dtype)  # diffusers' own warns of every dtype but float32


def at_once(height: int, width: int) -> int:
    """How many images of this size an autoencoder takes at once."""
    return max(1, PIXELS // (height * width))


def with_parts(denoiser: Denoiser, folder: Path) -> Denoiser:
    """A denoiser of the pipeline in `folder` whose network knows its text encoder and its codec, where it has them."""
    network = denoiser.network
    if isinstance(network, Family):
        network.autoencoder = Autoencoder(folder, channels=network.shape[0])
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
