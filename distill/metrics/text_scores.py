"""Scores of a set of samples with their prompts, under a named protocol."""

from __future__ import annotations

import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from distill.errors import UserError, require
from distill.metrics.images import checked_images, image_shape


class TextJudge(typing.Protocol):
    """The interface of a model that scores pictures for texts. The rewards of distill.rewards load such models."""

    def __call__(self, images: Tensor, cond: None, texts: Sequence[str], /) -> Tensor:
        """Return the scores [B] of images, float32 [B, 1 or 3, H, W] in [-1, 1], for B texts."""


@dataclass(frozen=True, eq=False)
class ScoredSet:
    """The scores of a set of samples.

    Attributes:
        name: The name of the protocol.
        each: The scores of the samples, float64 [N] on the CPU.
    """

    name: str
    each: Tensor

    @property
    def mean(self) -> float:
        """The mean score, which is the number that tables quote."""
        return float(self.each.mean())

    @property
    def error(self) -> float:
        """The standard error of the mean over the samples. It is NaN for a single sample."""
        return float(self.each.std() / math.sqrt(len(self.each)))

    def __str__(self) -> str:
        return f"{self.name} {self.mean:.4f} +- {self.error:.4f} ({len(self.each)} samples)"


@dataclass(frozen=True, eq=False)
class TextScores:
    """A protocol that scores samples with their prompts, such as `clip_score(ViT-g-14)`.

    Images are clamped to [-1, 1], as in an image file. They are not rounded to 8 bits. The score of a sample depends on
    the sample and its prompt alone, so sets may be scored in parts, on any number of processes.

    Attributes:
        name: The name to print beside a number: the score, and the model that gives it.
        judge: The model.
        least: The least score of a sample. None for no bound.
        at_once: The number of images in one pass, which bounds the memory.
        device: The device of the model.
    """

    name: str
    judge: TextJudge
    least: float | None = None
    at_once: int = 16
    device: torch.device | str = "cpu"

    def to(self, device: torch.device | str) -> TextScores:
        """Return the protocol with its model on a device, to which it is moved."""
        if isinstance(self.judge, nn.Module):
            self.judge.to(device)
        return replace(self, device=device)

    @torch.no_grad()
    def score(self, images: Tensor, texts: Sequence[str]) -> ScoredSet:
        """Return the scores of samples.

        Args:
            images: Images [N, 1 or 3, H, W] of a floating-point dtype.
            texts: Their N prompts.

        Raises:
            UserError: There are no images or not as many prompts, or images have another shape, hold integers, NaN or
                infinity.
        """
        require(len(images) > 0, f"{self.name}: no images")
        if len(texts) != len(images) or isinstance(texts, str):
            raise UserError(f"{self.name}: {len(texts)} prompts given, expected one for each of {len(images)} images")
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise UserError(f"{self.name}: images {list(images.shape)} given, expected [N, 1 or 3, H, W]")
        scores = []
        for first in range(0, len(images), self.at_once):
            part = images[first : first + self.at_once]
            pixels = checked_images(part, image_shape(part)).to(self.device, torch.float32)
            scores.append(self.judge(pixels, None, texts[first : first + self.at_once]).double().cpu())
        each = torch.cat(scores)
        return ScoredSet(self.name, each if self.least is None else each.clamp(min=self.least))

    def merge(self, parts: Sequence[ScoredSet]) -> ScoredSet:
        """Return the scores of all parts of a set, in the order of the parts.

        Raises:
            UserError: A part is from another protocol, or there are none.
        """
        require(len(parts) > 0, f"{self.name}: no parts")
        for part in parts:
            require(part.name == self.name, f"{self.name}: a part is from {part.name}")
        return ScoredSet(self.name, torch.cat([part.each for part in parts]))
