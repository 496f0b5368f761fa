"""EDM's or EDM2's network as the `unet` of OneStepPipeline, for diffusers. The exported file holds the network's source
too, so that it needs only torch and diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from distill.networks.edm_unet import SongUNet as Network


class OneStepNetwork(ModelMixin, ConfigMixin):
    """What OneStepPipeline asks of its network: (x, timestep, labels) -> (output,), and three entries of the config."""

    @register_to_config
    def __init__(
        self,
        settings: Mapping[str, Any],  # the network's own
        sample_size: int,
        in_channels: int,
        num_class_embeds: int | None = None,
    ) -> None:
        super().__init__()
        self.classes = num_class_embeds
        self.network = Network(**settings)

    def forward(
        self, x: Tensor, timestep: Tensor, class_labels: Tensor | None = None, return_dict: bool = False
    ) -> tuple[Tensor]:
        """F [B, C, H, W] for `x` [B, C, H, W], `timestep` [B] = 1000 c_noise, `class_labels` int64 [B]."""
        labels = None
        if self.classes is not None and class_labels is not None:
            labels = torch.nn.functional.one_hot(class_labels, self.classes).to(x.dtype)
        return (self.network(x, timestep / 1000, labels),)
