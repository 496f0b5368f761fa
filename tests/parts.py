"""Tiny autoencoders, text encoders and tokenizers: the parts of tests.pipelines that several families share."""

from __future__ import annotations

from typing import Any

import diffusers  # lazy, as transformers: a class is imported when it is first used
import transformers
from tokenizers.pre_tokenizers import ByteLevel

LENGTH = 32  # tokens of CLIP: a prompt has one for each letter, and two more


def text_unet(down: tuple[str, str], **network: Any) -> diffusers.UNet2DConditionModel:
    """The UNet of Stable Diffusion, two levels of which `down` says where attention is."""
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
    """Images [3, 16, 16] to latents [channels, 8, 8]."""
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
    """The autoencoder of Stable Diffusion 3 and FLUX.1: 16 channels, no convolutions around the latents."""
    return autoencoder(16, use_quant_conv=False, use_post_quant_conv=False, **settings)


def deep_autoencoder() -> diffusers.AutoencoderDC:
    """Images [3, 32, 32] to latents [4, 8, 8], each part in a second kind of block."""
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


def clip_tokenizer(**settings: Any) -> transformers.CLIPTokenizer:
    """A token for each byte, within a word and at its end."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=LENGTH, **settings)


def clip(tokenizer: Any, width: int, projection: bool = False) -> Any:
    """A CLIP text encoder of two layers, features [B, LENGTH, width]."""
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=LENGTH,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=width,
    )
    return (transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel)(config)


def t5_tokenizer() -> transformers.T5Tokenizer:
    """A token for each ASCII letter."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(chr(code), -3.0) for code in range(33, 127)]
    return transformers.T5Tokenizer(vocab=special + letters, extra_ids=0, model_max_length=LENGTH)


def t5(tokenizer: Any) -> transformers.T5EncoderModel:
    """A T5 encoder of two layers, features [B, L, 32]."""
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return transformers.T5EncoderModel(config)


def gemma_tokenizer() -> transformers.GemmaTokenizer:
    """A token for each ASCII letter and for each other byte."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *(chr(code) for code in range(33, 127))]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    return transformers.GemmaTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])


def gemma(tokenizer: Any) -> transformers.Gemma2Model:
    """A Gemma 2 of two layers, features [B, L, 24]."""
    config = transformers.Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    return transformers.Gemma2Model(config)
