"""What every family of diffusers pipelines says of itself. One file a family; `__init__` lists them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from distill.denoiser import Condition
from distill.errors import UserError

Conditions = dict[str, Tensor]
"""Text conditions by name, [N, ...] each."""


class Family(nn.Module):
    """A pipeline's denoising network behind the denoiser's interface: (x [B, C, H, W], time [B], cond) -> [B, C, H, W].

    `side` is the height and width of a latent (None: what the pipeline makes by default), one of which stands for a
    square of `factor` pixels; `guidance` is what a network with guidance embedded is told. A text condition is a
    mapping of the names in `conditions`; `null` is that of one sample, known when the null prompt has been encoded.
    A family's class says what all its checkpoints share; the rest is read from the checkpoint's own files.
    """

    pipelines: ClassVar[tuple[str, ...]]  # class names in model_index.json
    network: ClassVar[str]  # class name of the network in diffusers
    part: ClassVar[str] = "transformer"  # the component that is the network
    text: ClassVar[bool] = True  # whether prompts are its condition
    unguided: ClassVar[float] = 1.0  # the pipeline's guidance_scale that means one evaluation, without guidance

    def __init__(self, model: Any, side: int | None = None, factor: int = 8, guidance: float = 3.5) -> None:
        super().__init__()
        self.model = model
        self.side = self.default_side() if side is None else side
        self.pixels = self.side * factor  # height and width of an image
        self.guidance = guidance
        self.classes = 0
        self.null: Any = None
        self.text_encoder: Any = None  # see distill.encoders.encoder; both come with the folder
        self.autoencoder: Any = None
        self.taps = self.find_taps()

    @property
    def config(self) -> Mapping[str, Any]:
        return cast(Mapping[str, Any], self.model.config)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a sample."""
        return self.config["in_channels"], self.side, self.side

    def default_side(self) -> int:
        size = self.config["sample_size"]
        if not isinstance(size, int):
            raise UserError(f"teacher: sample_size must be one number, got {size}")
        return size

    def find_taps(self) -> dict[str, str]:
        """Short names of Denoiser.features: the middle of a transformer."""
        return {"encoder": (middle := f"model.transformer_blocks.{self.depth // 2}"), "middle": middle}

    @property
    def depth(self) -> int:
        return len(self.model.transformer_blocks)

    def tapped(self, output: Any) -> Tensor:
        """What a tap has seen, as features [B, C, H, W]: a block's image tokens come last and row by row."""
        tokens: Tensor = output[-1] if isinstance(output, tuple) else output
        side = self.side // self.patch
        features: Tensor = tokens[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))
        return features

    @property
    def patch(self) -> int:
        """Side of the square of samples that a token stands for."""
        return int(self.config["patch_size"])

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        raise NotImplementedError

    def given(self, x: Tensor, cond: Condition) -> Mapping[str, Tensor]:
        """The text condition in the dtype of `x`; masks stay whole numbers."""
        if not isinstance(cond, Mapping) or cond.keys() != self.conditions.keys():
            held = sorted(cond) if isinstance(cond, Mapping) else type(cond).__name__
            raise UserError(f"condition: {type(self).__name__} takes {sorted(self.conditions)}, got {held}")
        return {name: value.to(x.dtype) if value.is_floating_point() else value for name, value in cond.items()}

    @property
    def conditions(self) -> dict[str, tuple[int, ...]]:
        """Shape of each text condition of one sample, at its usual length; empty where labels or nothing are asked."""
        return {}

    def example(self, count: int) -> Condition:
        """Some condition [count, ...], to try the network: classes in turn, random embeddings, no padding."""
        if self.classes:
            return torch.arange(count) % self.classes
        generator = torch.Generator().manual_seed(0)
        made = {
            name: torch.ones(count, *shape, dtype=torch.int64)
            if name == "mask"
            else torch.randn(count, *shape, generator=generator)
            for name, shape in self.conditions.items()
        }
        return made or None

    @classmethod
    def encode(cls, pipe: Any, prompts: list[str]) -> Conditions:
        """Text conditions of prompts, by the text parts of the stock pipeline `pipe`."""
        raise NotImplementedError

    @classmethod
    def encode_null(cls, pipe: Any) -> Conditions:
        """What stands for no prompt in the pipeline's own guidance."""
        return cls.encode(pipe, [""])

    def call(self) -> dict[str, Any]:
        """Arguments of the stock pipeline, beside prompts, for one unguided evaluation at the size of the network."""
        size = {"height": self.pixels, "width": self.pixels}
        return {"num_inference_steps": 1, "guidance_scale": self.unguided, **size}

    def latents(self, z: Tensor) -> dict[str, Tensor]:
        """The argument that hands unit normal `z` [B, C, H, W] to the stock pipeline."""
        return {"latents": z}


class UNetFamily(Family):
    """A family whose network is a U-Net: its features are grids already."""

    part = "unet"

    def find_taps(self) -> dict[str, str]:
        """The last block of the encoder, and the middle."""
        return {"encoder": f"model.down_blocks.{len(self.model.down_blocks) - 1}", "middle": "model.mid_block"}

    def tapped(self, output: Any) -> Tensor:
        features: Tensor = output[0] if isinstance(output, tuple) else output
        return features
