"""The contract of a reward."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from distill.denoiser import Denoiser
from distill.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Reward:
    """A model that says how good an image is. Its fields are its settings, and `load` returns the network.

    Attributes:
        name: The name of the reward in the log.
    """

    name: ClassVar[str]

    @property
    def reads_texts(self) -> bool:
        """Whether the network takes the texts of the prompts, which a data set of labels or of neither lacks."""
        return False

    def load(self) -> nn.Module:
        """Return the network (x, cond) -> reward, or (x, cond, texts) -> reward where `reads_texts` is true.

        Its arguments are images x [B, C, H, W] in [-1, 1], their condition, and their B prompts as they are written.
        The rewards [B] are larger for better images, and differentiable in x.

        Raises:
            UserError: The files of the network are missing or damaged.
        """
        raise NotImplementedError

    def check(self, teacher: Denoiser) -> None:
        """Raise UserError when the reward cannot judge the samples of this teacher's generator."""
        if teacher.latents and teacher.network.autoencoder is None:
            raise UserError(f"reward: {self.name} judges pixels, the teacher's samples are latents and have no decoder")
