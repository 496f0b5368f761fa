"""ImageReward (Xu et al., arXiv:2304.05977), version 1.0, as a reward."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from distill.annotations import LocalPath
from distill.errors import UserError
from distill.quiet import quiet_libraries
from distill.rewards.prepare import CLIP_MEAN, CLIP_STD, Prepare, cut_rounded
from distill.rewards.published_files import (
    find_file,
    linear_layers,
    load_tokenizer,
    model_with,
    naming_file,
    read_state,
)
from distill.rewards.text_score import TextReward, TextScore

# ImageReward/ImageReward.py of github.com/THUDM/ImageReward: the statistics of the head's output over the training
# set, by which the score is standardised, and the tokens of a prompt that are read.
MEAN, STD = 0.16717362830052426, 1.0333394966054072
TOKENS = 35
HEAD_WIDTH = 64  # of attention: 1024/16 in BLIP's ViT-L (models/blip.py), 768/12 in its BERT (configs/med_config.json)

# The names of the parts of BLIP's ViT (models/vit.py of github.com/salesforce/BLIP) -> transformers'.
_VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
}
_LAYER = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


class ImageRewardScore(TextScore):
    """BLIP's text encoder, which attends to the image, with linear layers on its first token: scores [B].

    Args:
        vision: BLIP's image encoder, a BlipVisionModel.
        text: BLIP's text encoder, a BlipTextModel with cross-attention.
        head: The linear layers.
        tokenizer: BERT's tokenizer.
    """

    def __init__(self, vision: Any, text: Any, head: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.vision, self.text, self.head, self.tokenizer = vision, text, head, tokenizer
        self.prepare = Prepare(vision.config.image_size, CLIP_MEAN, CLIP_STD, cut_rounded)

    def read(self, texts: Sequence[str]) -> dict[str, Tensor]:
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        )
        return {"ids": tokens["input_ids"], "mask": tokens["attention_mask"]}

    def judge(self, x: Tensor, text: dict[str, Tensor]) -> Tensor:
        image = self.vision(pixel_values=self.prepare(x)).last_hidden_state
        # In the form in which attention adds it, since transformers would read the values of a plain one on the host.
        mask = (1 - text["mask"][:, None, None].to(image.dtype)) * torch.finfo(image.dtype).min
        hidden = self.text(input_ids=text["ids"], attention_mask=mask, encoder_hidden_states=image).last_hidden_state
        return cast(Tensor, (self.head(hidden[:, 0])[:, 0] - MEAN) / STD)


@dataclass(frozen=True, kw_only=True)
class ImageReward(TextReward):
    """ImageReward-v1.0: a standardised score of how well people like an image for its prompt, 0 on average."""

    weights: LocalPath = "THUDM/ImageReward"  # the file of the weights, or the folder or hub id that holds it
    tokenizer: LocalPath = "google-bert/bert-base-uncased"  # the folder or hub id of BERT's tokenizer

    name: ClassVar[str] = "image_reward"

    def build(self) -> ImageRewardScore:
        file = find_file(self.weights, "ImageReward.pt", "reward.weights")
        state = read_state(file, "reward.weights")
        tokenizer = load_tokenizer(self.tokenizer, "reward.tokenizer")
        with naming_file("reward.weights", self.weights), quiet_libraries():
            vision, text = _image_encoder(state), _text_encoder(state)
            head = linear_layers(_inside(state, "mlp.layers."), text.config.hidden_size)
        return ImageRewardScore(vision, text, head, tokenizer)


def _inside(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the weights whose names begin with `prefix`, without it. Raises UserError if there are none."""
    found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not found:
        raise UserError(f"no weight of {prefix}*, so this is no ImageReward")
    return found


def _image_encoder(state: Mapping[str, Tensor]) -> Any:
    """Build BLIP's image encoder, whose sizes are those of its weights."""
    from transformers import BlipVisionConfig, BlipVisionModel

    state = _inside(state, "blip.visual_encoder.")
    width, patch = state["pos_embed"].shape[2], state["patch_embed.proj.weight"].shape[2]
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(state["blocks.0.mlp.fc1.weight"]),
        num_hidden_layers=_depth(state, r"blocks\.(\d+)\."),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        image_size=patch * round((state["pos_embed"].shape[1] - 1) ** 0.5),
        patch_size=patch,
        layer_norm_eps=1e-6,  # models/vit.py; the default of transformers is another
    )
    return model_with(BlipVisionModel, config, dict(_renamed(name, value) for name, value in state.items()))


def _renamed(name: str, value: Tensor) -> tuple[str, Tensor]:
    """Return a weight of BLIP's image encoder with the name that it has in transformers."""
    block = re.fullmatch(r"(blocks\.(\d+)\.)?(.+?)(\.weight|\.bias)?", name)
    assert block is not None, "any name fits"
    prefix = f"encoder.layers.{block[2]}." if block[1] else ""
    parts = _LAYER if block[1] else _VISION
    if block[3] not in parts:
        raise UserError(f"weights: '{name}' is no weight of BLIP's image encoder")
    return f"{prefix}{parts[block[3]]}{block[4] or ''}", value


def _text_encoder(state: Mapping[str, Tensor]) -> Any:
    """Build BLIP's text encoder, whose sizes are those of its weights. Its names are those of transformers."""
    from transformers import BlipTextConfig, BlipTextModel

    state = _inside(state, "blip.text_encoder.")
    state.pop("embeddings.position_ids", None)  # the numbers from 0, which older versions of transformers kept
    words, key = state["embeddings.word_embeddings.weight"], state["encoder.layer.0.crossattention.self.key.weight"]
    config = BlipTextConfig(
        vocab_size=words.shape[0],
        hidden_size=words.shape[1],
        encoder_hidden_size=key.shape[1],
        intermediate_size=len(state["encoder.layer.0.intermediate.dense.weight"]),
        num_hidden_layers=_depth(state, r"encoder\.layer\.(\d+)\."),
        num_attention_heads=max(1, words.shape[1] // HEAD_WIDTH),
        max_position_embeddings=len(state["embeddings.position_embeddings.weight"]),
        layer_norm_eps=1e-12,
        is_decoder=True,  # builds cross-attention; a call without this argument attends in both directions
    )
    return model_with(BlipTextModel, config, state, add_pooling_layer=False)


def _depth(state: Mapping[str, Tensor], pattern: str) -> int:
    """Return the number of layers, from the names of their weights."""
    return 1 + max(int(found[1]) for name in state if (found := re.match(pattern, name)))
