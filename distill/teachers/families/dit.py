"""DiT (arXiv:2212.09748): a transformer of latents on ImageNet's classes; the class after them is the null condition."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from distill.denoiser import Condition
from distill.teachers.families.family import Family


class DiT(Family):
    """Conditioned on the index of the step and on labels. Predicts noise, then variances, which are left."""

    pipelines = ("DiTPipeline",)
    text = False

    def __init__(self, model: Any, *args: Any, **settings: Any) -> None:
        super().__init__(model, *args, **settings)
        self.classes = self.null = self.config["num_embeds_ada_norm"]
        for module in model.modules():
            if hasattr(module, "dropout_prob"):  # the labels that training drops are the trainer's to choose
                module.dropout_prob = 0.0

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        output: Tensor = self.model(x, timestep=time, class_labels=cond, return_dict=False)[0]
        return output[:, : x.shape[1]]

    def call(self, z: Tensor, cond: Condition) -> dict[str, Any]:
        assert isinstance(cond, Tensor)
        return {"class_labels": cond.tolist(), "guidance_scale": self.unguided}
