"""Rewards from CLIP (Radford et al., arXiv:2103.00020): the similarity to a prompt, and an aesthetic score."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from distill.annotations import LocalPath
from distill.conditions import Condition, ConditionLike
from distill.denoiser import Denoiser
from distill.errors import UserError, one_line
from distill.pipeline_folder import loaded_files
from distill.rewards.reward import Reward
from distill.saved_files import check_folder, load_tensors
from distill.weights import check_loaded, fill

if TYPE_CHECKING:
    from transformers import CLIPModel

Statistics = tuple[float, ...]


class ClipImages(nn.Module):
    """CLIP's image encoder: from images [B, 1 or 3, H, W] in [-1, 1] to embeddings [B, D] of length 1.

    Args:
        model: The CLIP model.
        mean: The mean of each channel for pixels in [0, 1].
        std: The standard deviation of each channel for pixels in [0, 1].
    """

    def __init__(self, model: CLIPModel, mean: Statistics, std: Statistics) -> None:
        super().__init__()
        self.vision, self.projection = model.vision_model, model.visual_projection
        self.size: int = model.config.vision_config.image_size
        self.mean, self.std = (nn.Buffer(torch.tensor(values)[:, None, None]) for values in (mean, std))

    def prepare(self, x: Tensor) -> Tensor:
        """Return images `x` as the model takes them, [B, 3, size, size], differentiable in `x`.

        The steps are those of CLIP's image processor: the shorter side is resized to `size` (bicubic, with
        antialiasing), the middle square is cut out, and the channels are normalised. The processor also rounds to 8
        bits, which has no gradient.
        """
        height, width = x.shape[2:]
        shorter = min(height, width)
        sides = self.size * height // shorter, self.size * width // shorter
        pixels = interpolate((x + 1) / 2, sides, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (sides[0] - self.size) // 2, (sides[1] - self.size) // 2
        square = pixels[:, :, top : top + self.size, left : left + self.size]
        return (square.expand(-1, 3, -1, -1) - self.mean) / self.std

    def forward(self, x: Tensor) -> Tensor:
        return normalize(self.projection(self.vision(pixel_values=self.prepare(x)).pooler_output))


class ClipScore(nn.Module):
    """The CLIP score that tables quote: 100 cos(image, prompt of its label), [B].

    Args:
        images: The image encoder.
        prompts: The embeddings of the prompts by label, [K, D] of length 1.
    """

    def __init__(self, images: ClipImages, prompts: Tensor) -> None:
        super().__init__()
        self.images, self.prompts = images, nn.Buffer(prompts)

    def forward(self, x: Tensor, cond: ConditionLike = None) -> Tensor:
        labels = Condition.of(cond).labels
        prompts = self.prompts if labels is None else self.prompts[labels]
        return cast(Tensor, 100 * (self.images(x) * prompts).sum(1))


class AestheticScore(nn.Module):
    """The score [B] that a `head` gives to the embedding of the image. The condition is not used."""

    def __init__(self, images: ClipImages, head: nn.Module) -> None:
        super().__init__()
        self.images, self.head = images, head

    def forward(self, x: Tensor, cond: ConditionLike = None) -> Tensor:
        return cast(Tensor, self.head(self.images(x))[:, 0])


@dataclass(frozen=True, kw_only=True)
class _ClipBased(Reward):
    clip: LocalPath  # the folder of a CLIPModel with its tokenizer and preprocessor_config.json, or a hub id

    def check(self, teacher: Denoiser) -> None:
        super().check(teacher)
        shape = teacher.image_shape or (0,)
        if len(shape) > 1 and len(shape) != 3:
            raise UserError(f"reward: {self.name} judges images (C, H, W), the teacher makes {shape}")
        if (channels := shape[0]) not in (1, 3):
            raise UserError(f"reward: {self.name} judges images of 1 or 3 channels, the teacher's have {channels}")


@dataclass(frozen=True, kw_only=True)
class ClipReward(_ClipBased):
    """The similarity of the image to the prompt of its label, as 100 times the cosine."""

    prompts: tuple[str, ...]  # one for each class, by label; a single one for an unconditional teacher

    name: ClassVar[str] = "clip_score"

    def check(self, teacher: Denoiser) -> None:
        super().check(teacher)
        if teacher.network.text_encoder is not None:
            raise UserError("reward.prompts: are one a class, the teacher takes prompts in place of classes")
        if len(self.prompts) != (teacher.network.classes or 1):
            have = f"{len(self.prompts)} given, the teacher has {teacher.network.classes} classes"
            raise UserError(f"reward.prompts: must be one a class (one for an unconditional teacher), {have}")

    def load(self) -> nn.Module:
        model, tokenizer, images = _load(self.clip)
        longest = model.config.text_config.max_position_embeddings
        tokens = tokenizer(list(self.prompts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        with torch.no_grad():
            prompts = model.text_projection(model.text_model(**tokens).pooler_output)
        return ClipScore(images, normalize(prompts))


@dataclass(frozen=True, kw_only=True)
class AestheticReward(_ClipBased):
    """The score of linear layers on CLIP's image embedding, such as LAION's aesthetic predictors."""

    head: LocalPath  # a .safetensors file of linear layers, in the order of the numbers in their names

    name: ClassVar[str] = "aesthetic"

    def load(self) -> nn.Module:
        _, _, images = _load(self.clip)
        return AestheticScore(images, _head(self.head, images.projection.out_features))


def _load(source: str) -> tuple[CLIPModel, Any, ClipImages]:
    """Load the model in `source`, in float32, in eval mode and frozen, with its tokenizer and its image encoder.

    The weights come from safetensors alone, because a pickle may run code.
    """
    from transformers import AutoTokenizer, CLIPModel
    from transformers.image_processing_base import ImageProcessingMixin

    folder = Path(source)
    try:
        if folder.is_dir():
            check_folder(folder)
        model, info = CLIPModel.from_pretrained(source, use_safetensors=True, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        settings, _ = ImageProcessingMixin.get_image_processor_dict(source)
        statistics = tuple(settings["image_mean"]), tuple(settings["image_std"])
    except Exception as error:  # transformers and safetensors raise errors of many classes
        raise UserError(f"reward.clip: cannot read '{source}': {type(error).__name__}: {one_line(error)}") from error
    try:
        check_loaded(model, loaded_files(folder) if folder.is_dir() else ())
    except UserError as error:
        raise UserError(f"reward.clip: '{source}': {error}") from error
    if info["missing_keys"]:
        raise UserError(f"reward.clip: the weights in '{source}' lack {sorted(info['missing_keys'])[0]}")
    model = model.float().requires_grad_(False).eval()
    return model, tokenizer, ClipImages(model, *statistics)


def _head(file: str, width: int) -> nn.Sequential:
    """Load the linear layers in `file`, which turn `width` features into one score."""

    try:
        tensors = load_tensors(Path(file))
        names = sorted(
            (name.removesuffix(".weight") for name in tensors if name.endswith(".weight")),
            key=lambda name: [int(digits) for digits in re.findall(r"\d+", name)],
        )
        layers = []
        for name in names:
            outputs, inputs = tensors[f"{name}.weight"].shape
            layer = nn.Linear(inputs, outputs)
            fill(layer, {key: tensors[f"{name}.{key}"] for key in ("weight", "bias")})
            layers.append(layer)
        head = nn.Sequential(*layers)
        score = head(torch.zeros(1, width))
    except Exception as error:  # safetensors and torch raise errors of many classes for a file of another kind
        raise UserError(f"reward.head: cannot read '{file}': {type(error).__name__}: {one_line(error)}") from error
    if score.shape != (1, 1):
        raise UserError(f"reward.head: '{file}' ends in {score.shape[1]} numbers, expected one")
    return head
