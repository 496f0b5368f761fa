"""Stable Diffusion 1.x and 2.x (arXiv:2112.10752): a U-Net of latents with CLIP's text embeddings.

The scheduler says whether the network predicts noise (1.x, 2.x base) or v (2.x at 768 pixels).
"""

from typing import Any

from torch import Tensor

from distill.conditions import Condition
from distill.teachers.families.family import Conditions, UNetFamily

CLIP_TOKENS = 77  # the number of tokens to which CLIP pads a prompt


class StableDiffusion(UNetFamily):
    """Stable Diffusion, conditioned on the index of the step and on `prompt` [B, 77, D]."""

    pipelines = ("StableDiffusionPipeline",)
    network_class = "UNet2DConditionModel"
    unguided = 0.0

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"prompt": (CLIP_TOKENS, self.config["cross_attention_dim"])}

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        return self.evaluate(x, time, encoder_hidden_states=self.embeddings(x, cond)["prompt"])

    @classmethod
    def encode(cls, pipe: Any, prompts: list[str]) -> Conditions:
        return {"prompt": pipe.encode_prompt(prompts, pipe.text_encoder.device, 1, False)[0]}
