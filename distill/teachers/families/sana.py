"""Sana (arXiv:2410.10629): a rectified flow of a deep-compression autoencoder's latents, with Gemma's embeddings."""

import inspect
from typing import Any

from torch import Tensor

from distill.conditions import Condition
from distill.teachers.families.family import Conditions
from distill.teachers.families.pixart import PixArt


class Sana(PixArt):
    """Sana, conditioned on t, and on `prompt` [B, L, D] with the token mask `mask` [B, L].

    The network takes 1000 t times its `timestep_scale`. It predicts the velocity noise - x0.
    """

    pipelines = ("SanaPipeline",)
    network_class = "SanaTransformer2DModel"

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"prompt": (300, self.config["caption_channels"]), "mask": (300,)}

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        given = self.embeddings(x, cond)
        time = time * self.config["timestep_scale"]
        return self.evaluate(x, given["prompt"], timestep=time, encoder_attention_mask=given["mask"])

    @classmethod
    def encode(cls, pipe: Any, prompts: list[str]) -> Conditions:
        """Return the text conditions of prompts after the instruction that the pipeline puts before them by default."""
        instruction = inspect.signature(type(pipe).__call__).parameters["complex_human_instruction"].default
        return cls.encode_by(pipe, prompts, complex_human_instruction=instruction)

    @classmethod
    def encode_null(cls, pipe: Any) -> Conditions:
        return cls.encode_by(pipe, [""], complex_human_instruction=None)
