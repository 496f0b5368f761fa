"""Rewards from CLIP (Radford et al., arXiv:2103.00020): the similarity to a prompt, and an aesthetic score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from distill.annotations import LocalPath
from distill.conditions import ConditionLike
from distill.rewards.prepare import Prepare, Statistics, cut
from distill.rewards.published_files import (
    image_statistics,
    linear_layers,
    load_clip,
    load_tokenizer,
    naming_file,
    read_state,
)
from distill.rewards.text_score import PictureReward, TextReward, TextScore

if TYPE_CHECKING:
    from transformers import CLIPModel


class ClipImages(nn.Module):
    """CLIP's image encoder: from images [B, 1 or 3, H, W] in [-1, 1] to embeddings [B, D] of length 1.

    Args:
        model: The CLIP model.
        mean: The mean of each channel for pixels in [0, 1].
        std: The standard deviation of each channel for pixels in [0, 1].
        square: The function of distill.rewards.prepare that makes squares of images.
    """

    def __init__(
        self, model: CLIPModel, mean: Statistics, std: Statistics, square: Callable[[Tensor, int], Tensor] = cut
    ) -> None:
        super().__init__()
        self.vision, self.projection = model.vision_model, model.visual_projection
        self.prepare = Prepare(model.config.vision_config.image_size, mean, std, square)

    def forward(self, x: Tensor) -> Tensor:
        return normalize(self.projection(self.vision(pixel_values=self.prepare(x)).pooler_output))


class ClipTexts(nn.Module):
    """CLIP's text encoder: from N texts to embeddings [N, D] of length 1. Longer texts are cut.

    Args:
        model: The CLIP model.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: CLIPModel, tokenizer: Any) -> None:
        super().__init__()
        self.text, self.projection, self.tokenizer = model.text_model, model.text_projection, tokenizer
        self.longest: int = model.config.text_config.max_position_embeddings

    def forward(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        )
        # Without a mask: attention is causal, and the embedding is that of the first end of the text.
        ids = tokens["input_ids"].to(self.projection.weight.device)
        return normalize(self.projection(self.text(input_ids=ids).pooler_output))


class ClipScore(TextScore):
    """The scaled cosine of image and text: scale cos(image, text), [B].

    Args:
        images: The image encoder.
        texts: The text encoder.
        scale: The factor [], such as a model's own. None for 100, as in the CLIP score that tables quote.
    """

    def __init__(self, images: ClipImages, texts: ClipTexts, scale: Tensor | None = None) -> None:
        super().__init__()
        self.images, self.scale = images, nn.Buffer(torch.tensor(100.0) if scale is None else scale)
        self.texts: ClipTexts | None = texts

    def read(self, texts: Sequence[str]) -> dict[str, Tensor]:
        assert self.texts is not None, "prompts that are kept are the only texts"
        return {"embedding": self.texts(texts)}

    def judge(self, x: Tensor, text: dict[str, Tensor]) -> Tensor:
        return cast(Tensor, self.scale * (self.images(x) * text["embedding"]).sum(1))

    def keep_prompts(self, prompts: Sequence[str]) -> None:
        super().keep_prompts(prompts)
        self.texts = None  # nothing else is read, and the encoder takes memory


class AestheticScore(nn.Module):
    """The score [B] that a `head` gives to the embedding of the image. The condition is not used."""

    def __init__(self, images: ClipImages, head: nn.Module) -> None:
        super().__init__()
        self.images, self.head = images, head

    def forward(self, x: Tensor, cond: ConditionLike = None, texts: Sequence[str] | None = None) -> Tensor:
        return cast(Tensor, self.head(self.images(x))[:, 0])


@dataclass(frozen=True, kw_only=True)
class ClipReward(TextReward):
    """The similarity of the image to the prompt, as 100 times the cosine."""

    clip: LocalPath  # the folder of a CLIPModel with its tokenizer and preprocessor_config.json, or a hub id

    name: ClassVar[str] = "clip_score"

    def build(self) -> ClipScore:
        model = load_clip(self.clip, "reward.clip")
        images = ClipImages(model, *image_statistics(self.clip, "reward.clip"))
        return ClipScore(images, ClipTexts(model, load_tokenizer(self.clip, "reward.clip")))


@dataclass(frozen=True, kw_only=True)
class PickReward(TextReward):
    """PickScore (Kirstain et al., arXiv:2305.01569): a CLIP ViT-H/14 that was trained on people's choices.

    The score is the model's own logit scale times the cosine (README.md of github.com/yuvalkirstain/PickScore).
    """

    clip: LocalPath = "yuvalkirstain/PickScore_v1"  # the folder or the hub id of the CLIPModel
    processor: LocalPath = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # that of its tokenizer and preprocessor

    name: ClassVar[str] = "pick_score"

    def build(self) -> ClipScore:
        model = load_clip(self.clip, "reward.clip")
        images = ClipImages(model, *image_statistics(self.processor, "reward.processor"))
        texts = ClipTexts(model, load_tokenizer(self.processor, "reward.processor"))
        return ClipScore(images, texts, scale=model.logit_scale.exp())


@dataclass(frozen=True, kw_only=True)
class AestheticReward(PictureReward):
    """The score of linear layers on CLIP's image embedding, such as LAION's aesthetic predictors."""

    clip: LocalPath  # the folder of a CLIPModel with its preprocessor_config.json, or a hub id
    head: LocalPath  # a file of linear layers, in the order of the numbers in their names: .safetensors, or of torch

    name: ClassVar[str] = "aesthetic"

    def load(self) -> nn.Module:
        model = load_clip(self.clip, "reward.clip")
        images = ClipImages(model, *image_statistics(self.clip, "reward.clip"))
        state = read_state(Path(self.head), "reward.head")
        with naming_file("reward.head", self.head):
            head = linear_layers(state, images.projection.out_features)
        return AestheticScore(images, head).requires_grad_(False).eval()
