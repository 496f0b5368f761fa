"""DiT (arXiv:2212.09748): a transformer of latents with classes; the one after them is the null condition."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from distill.conditions import Condition
from distill.networks.network import null_label
from distill.teachers.families.family import LatentFamily


class DiT(LatentFamily):
    """Conditioned on the index of the step and on labels. Predicts noise, then variances, which are left."""

    pipelines = ("DiTPipeline",)
    network_class = "DiTTransformer2DModel"
    text = False
    takes_scaled_noise = False

    def __init__(self, model: Any, *args: Any, **settings: Any) -> None:
        super().__init__(model, *args, **settings)
        self.classes = self.config["num_embeds_ada_norm"]
        self.null = null_label(self.classes)
        for module in model.modules():
            if hasattr(module, "dropout_prob"):  # the labels that training drops are the trainer's to choose
                module.dropout_prob = 0.0

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        output: Tensor = self.model(x, timestep=time, class_labels=cond.labels, return_dict=False)[0]
        return output[:, : x.shape[1]]

    def call(self) -> dict[str, Any]:
        return {"num_inference_steps": 1, "guidance_scale": self.unguided}

    def pipeline_noise(self, z: Tensor) -> dict[str, Tensor]:
        return {}  # the pipeline draws its noise itself
