"""DDPM and DDIM pipelines: a UNet2DModel of pixels, unconditional or class-conditional. Predicts what its scheduler
says: noise, v or the clean sample."""

from __future__ import annotations

from typing import Any, ClassVar

from distill.errors import UserError
from distill.teachers.unet import UNet


class DDPM(UNet):
    """Conditioned on the index of the step and on labels."""

    pipelines: ClassVar[tuple[str, ...]] = ("DDPMPipeline", "DDIMPipeline")
    network: ClassVar[str] = "UNet2DModel"
    part: ClassVar[str] = "unet"
    text: ClassVar[bool] = False

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        config = model.config
        if config["out_channels"] != config["in_channels"]:
            raise UserError("unet: must give as many channels as it takes, no variances")
        if config["class_embed_type"] is not None:
            raise UserError(f"unet: class_embed_type must be null, got {config['class_embed_type']!r}")
