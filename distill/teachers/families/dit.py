"""DiT (arXiv:2212.09748): a transformer of latents with class labels."""

from typing import Any

from torch import Tensor

from distill.conditions import Condition
from distill.errors import UserError
from distill.networks.network import null_label
from distill.teachers.families.family import LatentFamily


class DiT(LatentFamily):
    """DiT, conditioned on the index of the step and on labels. The label after the classes is the null condition.

    The network predicts noise, and after it variances, which are left out.
    """

    pipelines = ("DiTPipeline",)
    network_class = "DiTTransformer2DModel"
    text = False
    takes_scaled_noise = False

    def __init__(self, model: Any, *args: Any, **settings: Any) -> None:
        super().__init__(model, *args, **settings)
        if self.size[0] != self.size[1]:  # diffusers' network would mix the rows of a batch without an error
            raise UserError(f"resolution: a DiT makes square images alone, got {list(self.pixels)}")
        self.classes = self.config["num_embeds_ada_norm"]
        self.null = null_label(self.classes)
        for module in model.modules():
            if hasattr(module, "dropout_prob"):  # the trainer drops labels itself, so the network must not
                module.dropout_prob = 0.0

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        return self.evaluate(x, timestep=time, class_labels=cond.labels)[:, : x.shape[1]]

    def call(self) -> dict[str, Any]:
        return {"num_inference_steps": 1, "guidance_scale": self.unguided}

    def pipeline_noise(self, z: Tensor) -> dict[str, Tensor]:
        return {}  # the pipeline takes no noise, it draws its own
