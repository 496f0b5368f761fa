"""EDM's or EDM2's network as the `unet` of OneStepPipeline in diffusers.

The exported file also holds the network's source, so that it needs only torch and diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from distill.networks.edm_unet import SongUNet as Network


class OneStepNetwork(ModelMixin, ConfigMixin):
    """A network with the interface that OneStepPipeline calls: (x, timestep, class_labels) -> (output,).

    Args:
        settings: The keyword arguments of the network.
        sample_size: The height and width of a sample.
        in_channels: The number of channels of a sample.
        num_class_embeds: The number of classes, or None without classes.
    """

    _code = Path(__file__).read_text("utf-8")  # now, since diffusers replaces the file when it loads another export

    @register_to_config
    def __init__(
        self, settings: Mapping[str, Any], sample_size: int, in_channels: int, num_class_embeds: int | None = None
    ) -> None:
        super().__init__()
        self.classes = num_class_embeds
        self.network = Network(**settings)

    def save_config(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save the config, and this file beside it."""
        super().save_config(save_directory, *args, **kwargs)
        name = type(self).__module__.rpartition(".")[2]
        (Path(save_directory) / f"{name}.py").write_text(self._code, "utf-8")

    def forward(
        self, x: Tensor, timestep: Tensor, class_labels: Tensor | None = None, return_dict: bool = False
    ) -> tuple[Tensor]:
        """Return (F [B, C, H, W],) for `x` [B, C, H, W], `timestep` [B] = 1000 c_noise and `class_labels` int64 [B]."""
        labels = None
        if self.classes is not None and class_labels is not None:
            labels = torch.nn.functional.one_hot(class_labels, self.classes).to(x.dtype)
        return (self.network(x, timestep / 1000, labels),)
