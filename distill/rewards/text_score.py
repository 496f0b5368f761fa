"""The base of rewards that judge how well an image shows its prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.conditions import Condition, ConditionLike
from distill.denoiser import Denoiser
from distill.errors import UserError, require
from distill.random import to_device
from distill.rewards.reward import Reward


class TextScore(nn.Module):
    """A model that judges images by texts: (x [B, C, H, W], cond, texts) -> scores [B].

    The texts are those of the prompts. Where `keep_prompts` was called, they are those of the labels in the condition,
    and are read once.
    """

    count = 0  # the number of prompts that are kept

    def read(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return what the model keeps of N texts: tensors [N, ...] by name, without a graph."""
        raise NotImplementedError

    def judge(self, x: Tensor, text: dict[str, Tensor]) -> Tensor:
        """Return the scores [B] of images for B texts that `read` returned. They are differentiable in `x`."""
        raise NotImplementedError

    def keep_prompts(self, prompts: Sequence[str]) -> None:
        """Read the prompts of the classes, by label. A single prompt is that of every image."""
        self.count = len(prompts)
        for name, value in self.read(prompts).items():
            self.register_buffer(f"prompts_{name}", value)

    def forward(self, x: Tensor, cond: ConditionLike = None, texts: Sequence[str] | None = None) -> Tensor:
        if self.count:
            return self.judge(x, self._kept(Condition.of(cond).labels, len(x)))
        require(texts is not None and len(texts) == len(x), f"{type(self).__name__}: needs a text for each image")
        assert texts is not None
        with torch.no_grad():
            read = self.read(list(texts))
        return self.judge(x, {name: to_device(value, x.device, x.dtype) for name, value in read.items()})

    def _kept(self, labels: Tensor | None, batch: int) -> dict[str, Tensor]:
        """Return the rows of the prompts that are kept."""
        named = [(name, value) for name, value in self.named_buffers(recurse=False) if name.startswith("prompts_")]
        kept = {name.removeprefix("prompts_"): value for name, value in named}
        return {name: value.expand(batch, -1) if labels is None else value[labels] for name, value in kept.items()}


@dataclass(frozen=True, kw_only=True)
class PictureReward(Reward):
    """A reward that judges pictures: images of height and width, grey or of three colours."""

    def check(self, teacher: Denoiser) -> None:
        super().check(teacher)
        shape = teacher.image_shape or (0,)
        if len(shape) > 1 and len(shape) != 3:
            raise UserError(f"reward: {self.name} judges images (C, H, W), the teacher makes {shape}")
        if (channels := shape[0]) not in (1, 3):
            raise UserError(f"reward: {self.name} judges images of 1 or 3 channels, the teacher's have {channels}")


@dataclass(frozen=True, kw_only=True)
class TextReward(PictureReward):
    """A reward that judges pictures by texts."""

    prompts: tuple[str, ...] = ()  # one for each class, by label; one without classes; none for a teacher of prompts

    @property
    def reads_texts(self) -> bool:
        return not self.prompts

    def check(self, teacher: Denoiser) -> None:
        super().check(teacher)
        classes, given = teacher.network.classes, len(self.prompts)
        if teacher.network.text_encoder is not None:
            if self.prompts:
                raise UserError("reward.prompts: leave them out; the teacher takes prompts, and each image has its own")
        elif given != (classes or 1):
            have = f"{given} given, the teacher has {classes} classes"
            raise UserError(f"reward.prompts: must be one a class (one for an unconditional teacher), {have}")

    def build(self) -> TextScore:
        """Return the model, which has read no prompts yet. Raises UserError where its files are missing or damaged."""
        raise NotImplementedError

    def load(self) -> nn.Module:
        score = self.build().requires_grad_(False).eval()
        if self.prompts:
            with torch.no_grad():
                score.keep_prompts(self.prompts)
        return score
