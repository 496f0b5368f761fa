"""The contract of a reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from distill.denoiser import Denoiser
from distill.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Reward:
    """A judge of images: its fields are its settings, `load` gives the network."""

    name: ClassVar[str]
    """Under which the log shows it."""

    def load(self) -> nn.Module:
        """(x [B, C, H, W] in [-1, 1], cond) -> reward [B], the more the better, differentiable in x."""
        raise NotImplementedError

    def check(self, teacher: Denoiser) -> None:
        """Raise UserError when it cannot judge what this teacher's generator will make."""
        if teacher.latents and teacher.network.autoencoder is None:
            raise UserError(f"reward: {self.name} judges pixels, the teacher's samples are latents and have no decoder")
