"""DDPM and DDIM pipelines: a UNet2DModel of pixels, without or with class labels.

The scheduler says whether the network predicts noise, v, or the clean sample.
"""

from typing import Any

from distill.errors import UserError
from distill.teachers.families.family import Family
from distill.teachers.unet import UNet


class DDPM(UNet, Family):
    """The UNet2DModel of a DDPM or DDIM pipeline, conditioned on the index of the step and on labels."""

    pipelines = ("DDPMPipeline", "DDIMPipeline")
    network_class = "UNet2DModel"
    part = "unet"
    latents = False

    def __init__(self, model: Any) -> None:
        UNet.__init__(self, model)
        config = model.config
        if config["out_channels"] != config["in_channels"]:
            raise UserError("unet: must give as many channels as it takes, no variances")
        if config["class_embed_type"] is not None:
            raise UserError(f"unet: class_embed_type must be null, got {config['class_embed_type']!r}")

    @property
    def model(self) -> Any:
        """The network, under the name that the other families have for it."""
        return self.unet
