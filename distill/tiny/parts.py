"""Tiny autoencoders, text encoders and tokenizers, which several tiny pipelines share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers  # like transformers, it imports a class at its first use
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

from distill.saved_files import save_tensors, set_permissions

LENGTH = 32  # tokens of a prompt under CLIP: one for each letter, and two more
ASCII = [chr(code) for code in range(33, 127)]


def text_unet(down: tuple[str, str], **network: Any) -> diffusers.UNet2DConditionModel:
    """Return a U-Net of Stable Diffusion with two levels, of which `down` names the encoder's blocks."""
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=down,
        up_block_types=tuple(block.replace("Down", "Up") for block in reversed(down)),
        **network,
    )


def autoencoder(channels: int, **settings: Any) -> diffusers.AutoencoderKL:
    """Return an autoencoder from images [3, 16, 16] to latents [channels, 8, 8]."""
    return diffusers.AutoencoderKL(
        latent_channels=channels,
        sample_size=16,
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        **settings,
    )


def flow_autoencoder(**settings: Any) -> diffusers.AutoencoderKL:
    """Return an autoencoder as in Stable Diffusion 3 and FLUX.1: 16 channels, no convolutions around the latents."""
    return autoencoder(16, use_quant_conv=False, use_post_quant_conv=False, **settings)


def deep_autoencoder() -> diffusers.AutoencoderDC:
    """Return an autoencoder as in Sana, from images [3, 32, 32] to latents [4, 8, 8], with both kinds of its blocks."""
    blocks = ("ResBlock", "ResBlock", "EfficientViTBlock")
    sides = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in {
            "block_types": blocks,
            "block_out_channels": (4, 4, 8),
            "layers_per_block": (1, 1, 1),
            "qkv_multiscales": ((), (), (5,)),
        }.items()
    }
    return diffusers.AutoencoderDC(latent_channels=4, attention_head_dim=4, scaling_factor=0.41407, **sides)


def texts(*encoders: tuple[Any, Any]) -> dict[str, Any]:
    """Return the arguments `tokenizer`, `text_encoder`, `tokenizer_2`, ... of a pipeline for its pairs of these."""
    arguments: dict[str, Any] = {}
    for suffix, (tokenizer, encoder) in zip(("", "_2", "_3"), encoders, strict=False):
        arguments |= {f"tokenizer{suffix}": tokenizer, f"text_encoder{suffix}": encoder}
    return arguments


def blocks(width: int) -> dict[str, int]:
    """Return the entries of a config for two transformer blocks of this width, with two heads each."""
    return {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2}


def clip(width: int, projection: bool = False, pad: str = "<|endoftext|>") -> tuple[Any, Any]:
    """Return the tokenizer and the text encoder of a CLIP with features [B, LENGTH, width].

    A token is a byte inside a word, or a byte at its end.
    """
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(vocab=numbered(tokens), merges=[], model_max_length=LENGTH, pad_token=pad)
    config = transformers.CLIPTextConfig(
        **special(tokenizer), **blocks(width), max_position_embeddings=LENGTH, projection_dim=width
    )
    return tokenizer, (transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel)(config)


def save_aesthetic(folder: Path) -> None:
    """Write a CLIP of images and text, and a head of a single layer on its embedding of images."""
    tokenizer, _ = clip(16)
    text = blocks(16) | special(tokenizer) | {"max_position_embeddings": LENGTH}
    vision = blocks(16) | {"image_size": 16, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
        transformers.CLIPModel(config).save_pretrained(folder)
        head = {"layers.0.weight": torch.randn(1, 12), "layers.0.bias": torch.zeros(1)}
    tokenizer.save_pretrained(folder)
    statistics = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    processor = {"image_processor_type": "CLIPImageProcessor"} | statistics
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    save_tensors(head, folder / "head.safetensors")
    set_permissions(folder)


def t5() -> tuple[Any, Any]:
    """Return the tokenizer and the encoder of a T5 with features [B, L, 32]. A token is an ASCII letter."""
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in ASCII)]
    tokenizer = transformers.T5Tokenizer(vocab=scores, extra_ids=0, model_max_length=LENGTH)
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return tokenizer, transformers.T5EncoderModel(config)


def gemma() -> tuple[Any, Any]:
    """Return the tokenizer and the model of a Gemma 2 with features [B, L, 24].

    A token is an ASCII letter, or a byte of another letter.
    """
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *ASCII, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = transformers.GemmaTokenizer(vocab=numbered(tokens), merges=[], add_bos_token=True)
    config = transformers.Gemma2Config(**special(tokenizer), **blocks(24), num_key_value_heads=1, head_dim=8)
    return tokenizer, transformers.Gemma2Model(config)


def numbered(tokens: list[str]) -> dict[str, int]:
    """Return the vocabulary of these tokens, each with its index."""
    return {token: index for index, token in enumerate(tokens)}


def special(tokenizer: Any) -> dict[str, int]:
    """Return the entries of a text encoder's config that follow from its tokenizer."""
    ends = {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")}
    return {"vocab_size": len(tokenizer), **ends}
