"""A tiny ImageReward with random weights, under the names of the published file."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from torch import Tensor

from distill.saved_files import save_tensors, set_permissions
from distill.tiny.parts import numbered

WIDTH, LAYERS, PATCH, SIZE, POSITIONS = 8, 2, 8, 16, 40


def bert_tokenizer() -> transformers.BertTokenizer:
    """Return a BERT tokenizer whose tokens are letters: one at the start of a word, or one inside it."""
    letters = [chr(code) for code in range(33, 127)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return transformers.BertTokenizer(vocab=numbered([*special, *letters, *(f"##{one}" for one in letters)]))


def image_reward_weights(words: int) -> dict[str, Tensor]:
    """Return random weights of an ImageReward under the published names.

    Args:
        words: The number of tokens.
    """
    sizes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, outputs: int, inputs: int) -> None:
        sizes.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

    def norm(name: str) -> None:
        sizes.update({f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)})

    vision, text = "blip.visual_encoder", "blip.text_encoder"
    sizes[f"{vision}.cls_token"] = (1, 1, WIDTH)
    sizes[f"{vision}.pos_embed"] = (1, (SIZE // PATCH) ** 2 + 1, WIDTH)
    sizes |= {f"{vision}.patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH)}
    sizes |= {f"{vision}.patch_embed.proj.bias": (WIDTH,)}
    norm(f"{vision}.norm")
    sizes[f"{text}.embeddings.word_embeddings.weight"] = (words, WIDTH)
    sizes[f"{text}.embeddings.position_embeddings.weight"] = (POSITIONS, WIDTH)
    norm(f"{text}.embeddings.LayerNorm")
    for number in range(LAYERS):
        block, layer = f"{vision}.blocks.{number}", f"{text}.encoder.layer.{number}"
        norm(f"{block}.norm1")
        norm(f"{block}.norm2")
        linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
        linear(f"{block}.attn.proj", WIDTH, WIDTH)
        linear(f"{block}.mlp.fc1", 2 * WIDTH, WIDTH)
        linear(f"{block}.mlp.fc2", WIDTH, 2 * WIDTH)
        for attention in ("attention", "crossattention"):
            for part in ("self.query", "self.key", "self.value", "output.dense"):
                linear(f"{layer}.{attention}.{part}", WIDTH, WIDTH)
            norm(f"{layer}.{attention}.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", 2 * WIDTH, WIDTH)
        linear(f"{layer}.output.dense", WIDTH, 2 * WIDTH)
        norm(f"{layer}.output.LayerNorm")
    for name in ("blip.vision_proj", "blip.text_proj"):  # the published file has these, which no score uses
        linear(name, 4, WIDTH)
    for number, (outputs, inputs) in {0: (6, WIDTH), 2: (4, 6), 4: (1, 4)}.items():
        linear(f"mlp.layers.{number}", outputs, inputs)
    random = torch.Generator().manual_seed(0)
    return {name: 0.8 * torch.randn(shape, generator=random) for name, shape in sizes.items()}


def save_image_reward(folder: Path) -> None:
    """Write ImageReward.safetensors with BERT's tokenizer."""
    tokenizer = bert_tokenizer()
    tokenizer.save_pretrained(folder)
    save_tensors(image_reward_weights(len(tokenizer)), folder / "ImageReward.safetensors")
    set_permissions(folder)
