"""FLUX.1: a rectified flow of latents in patches of 2 x 2, with the embeddings of CLIP and T5.

FLUX.1-dev takes a guidance scale as an input, and FLUX.1-schnell takes none.
"""

from typing import Any, cast

import torch
from torch import Tensor

from distill.conditions import Condition
from distill.teachers.families.family import Conditions, LatentFamily


class Flux(LatentFamily):
    """FLUX.1, conditioned on t, `prompt` [B, L, D] from T5, `pooled` [B, P] from CLIP, and a fixed guidance scale.

    The network predicts the velocity noise - x0 of patches [B, H/2 W/2, 4 C], from their rows and columns.
    """

    pipelines = ("FluxPipeline",)
    network_class = "FluxTransformer2DModel"

    @property
    def patch(self) -> int:
        return 2

    @property
    def channels(self) -> int:
        return int(self.config["in_channels"]) // 4

    def default_size(self) -> tuple[int, int]:
        return 128, 128  # the default_sample_size of the pipeline, as the config of the network states none

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"prompt": (512, self.config["joint_attention_dim"]), "pooled": (self.config["pooled_projection_dim"],)}

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        given = self.embeddings(x, cond)
        zero, *places = (torch.arange(count, device=x.device) for count in (1, *(side // 2 for side in x.shape[2:])))
        guidance = x.new_full((x.shape[0],), self.guidance) if self.config["guidance_embeds"] else None
        output = self.evaluate(
            hidden_states=self.packed(x),
            timestep=time / 1000,
            guidance=guidance,
            pooled_projections=given["pooled"],
            encoder_hidden_states=given["prompt"],
            txt_ids=x.new_zeros(given["prompt"].shape[1], 3),
            img_ids=torch.cartesian_prod(zero, *places).to(x.dtype),  # (0, row, column) of each patch, row by row
        )
        return self.samples(output, x.shape[2])

    def packed(self, x: Tensor) -> Tensor:
        """Return samples [B, C, H, W] as patches [B, H/2 W/2, 4 C]."""
        patches = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # [B, C, H/2, 2, W/2, 2]
        return cast(Tensor, patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))

    def samples(self, output: Tensor, height: int) -> Tensor:
        """Return patches [B, H/2 W/2, 4 C] as samples [B, C, H, W] of this height, the inverse of `packed`."""
        patches = output.unflatten(1, (height // 2, -1)).unflatten(3, (-1, 2, 2))  # [B, H/2, W/2, C, 2, 2]
        return cast(Tensor, patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3))

    @classmethod
    def encode(cls, pipe: Any, prompts: list[str]) -> Conditions:
        encoded = pipe.encode_prompt(prompts, device=pipe.text_encoder.device)
        return {"prompt": encoded[0], "pooled": encoded[1]}

    def call(self) -> dict[str, Any]:
        return super().call() | {"guidance_scale": self.guidance}

    def pipeline_noise(self, z: Tensor) -> dict[str, Tensor]:
        return {"latents": self.packed(z)}
