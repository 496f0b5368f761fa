"""Stable Diffusion XL (arXiv:2307.01952): a U-Net of latents with the embeddings of two CLIPs."""

from typing import Any

from torch import Tensor

from distill.conditions import Condition
from distill.teachers.families.family import Conditions
from distill.teachers.families.stable_diffusion import CLIP_TOKENS, StableDiffusion


class SDXL(StableDiffusion):
    """Stable Diffusion XL, conditioned on the index of the step, `prompt` [B, 77, D] and `pooled` [B, P].

    The condition on the size always states an uncropped image, of the size of the samples.
    """

    pipelines = ("StableDiffusionXLPipeline",)

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        sizes = 6 * self.config["addition_time_embed_dim"]
        pooled = self.config["projection_class_embeddings_input_dim"] - sizes
        return {"prompt": (CLIP_TOKENS, self.config["cross_attention_dim"]), "pooled": (pooled,)}

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        given = self.embeddings(x, cond)
        size = [self.factor * side for side in x.shape[2:]]
        sizes = x.new_tensor([*size, 0, 0, *size]).expand(x.shape[0], 6)
        added = {"text_embeds": given["pooled"], "time_ids": sizes}  # original size, corner of the crop, target size
        return self.evaluate(x, time, encoder_hidden_states=given["prompt"], added_cond_kwargs=added)

    @classmethod
    def encode(cls, pipe: Any, prompts: list[str]) -> Conditions:
        encoded = pipe.encode_prompt(prompts, device=pipe.text_encoder_2.device, do_classifier_free_guidance=False)
        return {"prompt": encoded[0], "pooled": encoded[2]}

    @classmethod
    def encode_null(cls, pipe: Any) -> Conditions:
        """Return the condition for no prompt, as the pipeline's guidance makes it.

        It is zeros if the checkpoint says so (`force_zeros_for_empty_prompt`), as that of SDXL's base model does.
        """
        encoded = pipe.encode_prompt("", device=pipe.text_encoder_2.device, do_classifier_free_guidance=True)
        return {"prompt": encoded[1], "pooled": encoded[3]}
