"""Stable Diffusion 3 and 3.5 (arXiv:2403.03206): a rectified flow of latents with embeddings of two CLIPs and T5."""

from typing import Any

from torch import Tensor

from distill.conditions import Condition
from distill.teachers.families.family import Conditions, LatentFamily


class SD3(LatentFamily):
    """Stable Diffusion 3, conditioned on 1000 t, `prompt` [B, L, D] and `pooled` [B, P].

    The network predicts the velocity noise - x0. The scheduler's `shift` moves the times that a sampler visits, and
    leaves the path as it is.
    """

    pipelines = ("StableDiffusion3Pipeline",)
    network_class = "SD3Transformer2DModel"
    unguided = 0.0

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        prompt = (77 + 256, self.config["joint_attention_dim"])  # CLIP's tokens, then T5's
        return {"prompt": prompt, "pooled": (self.config["pooled_projection_dim"],)}

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        given = self.embeddings(x, cond)
        return self.evaluate(x, given["prompt"], timestep=time, pooled_projections=given["pooled"])

    @classmethod
    def encode(cls, pipe: Any, prompts: list[str]) -> Conditions:
        encoded = pipe.encode_prompt(
            prompts, prompts, prompts, device=pipe.text_encoder.device, do_classifier_free_guidance=False
        )
        return {"prompt": encoded[0], "pooled": encoded[2]}
