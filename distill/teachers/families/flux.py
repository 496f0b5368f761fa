"""FLUX.1: a rectified flow of latents, in patches of 2 x 2, under CLIP's pooled embedding and T5.

FLUX.1-dev is told a guidance scale; FLUX.1-schnell is not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.denoiser import Condition
from distill.teachers.families.family import Conditions, Family


class Flux(Family):
    """Conditioned on t, `prompt` [B, L, D], `pooled` [B, P] and, where embedded, a fixed `guidance`.

    Predicts the velocity noise - x0 of patches [B, H/2 W/2, 4 C], each with its row and column.
    """

    pipelines = ("FluxPipeline",)
    network = "FluxTransformer2DModel"
    patch = 2

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.config["in_channels"] // 4, self.side, self.side

    def default_side(self) -> int:
        return 128  # the pipeline's default_sample_size

    @property
    def conditions(self) -> dict[str, tuple[int, ...]]:
        return {
            "prompt": (512, self.config["joint_attention_dim"]),
            "pooled": (self.config["pooled_projection_dim"],),
        }

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        given = self.given(x, cond)
        half = self.side // 2
        rows, columns = torch.meshgrid(*2 * (torch.arange(half, device=x.device),), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(half * half, 3).to(x.dtype)
        guidance = x.new_full((x.shape[0],), self.guidance) if self.config["guidance_embeds"] else None
        output: Tensor = self.model(
            hidden_states=self.packed(x),
            timestep=time / 1000,
            guidance=guidance,
            pooled_projections=given["pooled"],
            encoder_hidden_states=given["prompt"],
            txt_ids=x.new_zeros(given["prompt"].shape[1], 3),
            img_ids=places,
            return_dict=False,
        )[0]
        return self.samples(output)

    def packed(self, x: Tensor) -> Tensor:
        """[B, C, H, W] as patches [B, H/2 W/2, 4 C]."""
        patches = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # [B, C, H/2, 2, W/2, 2]
        packed: Tensor = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return packed

    def samples(self, output: Tensor) -> Tensor:
        """The inverse of `packed`."""
        half, channels = self.side // 2, self.shape[0]
        patches = output.unflatten(1, (half, half)).unflatten(3, (channels, 2, 2))  # [B, H/2, W/2, C, 2, 2]
        samples: Tensor = patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
        return samples

    @classmethod
    def encode(cls, pipe: Any, prompts: list[str]) -> Conditions:
        encoded = pipe.encode_prompt(prompts, device=pipe.text_encoder.device)
        return {"prompt": encoded[0], "pooled": encoded[1]}

    def call(self) -> dict[str, Any]:
        return super().call() | {"guidance_scale": self.guidance}

    def latents(self, z: Tensor) -> dict[str, Tensor]:
        return {"latents": self.packed(z)}
