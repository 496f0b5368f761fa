"""What CLIP (Radford et al., arXiv:2103.00020) thinks of an image: its likeness to a prompt, or its looks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from distill.annotations import LocalPath
from distill.conditions import Condition, ConditionLike
from distill.denoiser import Denoiser
from distill.errors import UserError, one_line
from distill.rewards.reward import Reward

if TYPE_CHECKING:
    from transformers import CLIPModel

Statistics = tuple[float, ...]


class ClipImages(nn.Module):
    """Unit embeddings [B, D] of images [B, 1 or 3, H, W] in [-1, 1], differentiable in them.

    The preparation is CLIP's image processor without its rounding to 8 bits: the shorter side to the model's size
    (bicubic, antialiased), the middle square, `mean` and `std` a channel.
    """

    def __init__(self, model: CLIPModel, mean: Statistics, std: Statistics) -> None:
        super().__init__()
        self.vision, self.projection = model.vision_model, model.visual_projection
        self.size: int = model.config.vision_config.image_size
        self.mean, self.std = (nn.Buffer(torch.tensor(values)[:, None, None]) for values in (mean, std))

    def prepare(self, x: Tensor) -> Tensor:
        """[B, 3, size, size] for the model."""
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
    """100 cos(image, prompt of the label) [B]: the CLIP score that tables quote, of unit `prompts` [K, D]."""

    def __init__(self, images: ClipImages, prompts: Tensor) -> None:
        super().__init__()
        self.images, self.prompts = images, nn.Buffer(prompts)

    def forward(self, x: Tensor, cond: ConditionLike = None) -> Tensor:
        labels = Condition.of(cond).labels
        cosine: Tensor = (self.images(x) * (self.prompts if labels is None else self.prompts[labels])).sum(1)
        return 100 * cosine


class AestheticScore(nn.Module):
    """What a `head` makes of the image alone, [B]."""

    def __init__(self, images: ClipImages, head: nn.Module) -> None:
        super().__init__()
        self.images, self.head = images, head

    def forward(self, x: Tensor, cond: ConditionLike = None) -> Tensor:
        score: Tensor = self.head(self.images(x))[:, 0]
        return score


@dataclass(frozen=True, kw_only=True)
class _ClipBased(Reward):
    clip: LocalPath  # folder of a CLIPModel with its tokenizer and preprocessor_config.json, or a hub id

    def check(self, teacher: Denoiser) -> None:
        super().check(teacher)
        shape = teacher.image_shape or (0,)
        if len(shape) > 1 and len(shape) != 3:
            raise UserError(f"reward: {self.name} judges images (C, H, W), the teacher makes {shape}")
        if (channels := shape[0]) not in (1, 3):
            raise UserError(f"reward: {self.name} judges images of 1 or 3 channels, the teacher's have {channels}")


@dataclass(frozen=True, kw_only=True)
class ClipReward(_ClipBased):
    """Likeness of the image to its label's prompt, in hundredths of the cosine."""

    prompts: tuple[str, ...]  # one a class, by label; a single one for an unconditional teacher

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
    """A head of linear layers on CLIP's unit image embedding, such as LAION's aesthetic predictors."""

    head: LocalPath  # .safetensors file of linear layers, in the order of the numbers in their names

    name: ClassVar[str] = "aesthetic"

    def load(self) -> nn.Module:
        _, _, images = _load(self.clip)
        return AestheticScore(images, _head(self.head, images.projection.out_features))


def _load(source: str) -> tuple[CLIPModel, Any, ClipImages]:
    """Model and tokenizer in eval mode on the CPU, float32; weights from safetensors only."""
    from transformers import AutoTokenizer, CLIPModel
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        model, info = CLIPModel.from_pretrained(source, use_safetensors=True, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(source)
        settings, _ = ImageProcessingMixin.get_image_processor_dict(source)
        statistics = tuple(settings["image_mean"]), tuple(settings["image_std"])
    except Exception as error:  # transformers and safetensors each raise their own kinds
        raise UserError(f"reward.clip: cannot read '{source}': {type(error).__name__}: {one_line(error)}") from error
    if info["missing_keys"]:
        raise UserError(f"reward.clip: the weights in '{source}' lack {sorted(info['missing_keys'])[0]}")
    model = model.float().requires_grad_(False).eval()
    return model, tokenizer, ClipImages(model, *statistics)


def _head(file: str, width: int) -> nn.Sequential:
    """The linear layers of `file`, from `width` features to one score."""
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
        names = sorted(
            (name.removesuffix(".weight") for name in tensors if name.endswith(".weight")),
            key=lambda name: [int(digits) for digits in re.findall(r"\d+", name)],
        )
        layers = []
        for name in names:
            outputs, inputs = tensors[f"{name}.weight"].shape
            layer = nn.Linear(inputs, outputs)
            layer.load_state_dict({key: tensors[f"{name}.{key}"] for key in ("weight", "bias")})
            layers.append(layer)
        head = nn.Sequential(*layers)
        score = head(torch.zeros(1, width))
    except Exception as error:  # safetensors, torch and a file of another kind
        raise UserError(f"reward.head: cannot read '{file}': {type(error).__name__}: {one_line(error)}") from error
    if score.shape != (1, 1):
        raise UserError(f"reward.head: '{file}' ends in {score.shape[1]} numbers, expected one")
    return head
