"""Tiny diffusers pipelines with random weights: the real classes and the published schedulers, made without a network.

Widths differ wherever two of them could be confused (the two CLIP encoders of SDXL, text and image channels).
Every image is 16x16 with 8x8 latents unless said otherwise; the autoencoders halve each side once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers  # lazy, as transformers: a class is imported when it is first used
import pytest
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

from tests.tiny import once

LENGTH = 32  # tokens of CLIP: a prompt has one for each letter, and two more
STABLE_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LINEAR_BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}


def build(name: str) -> diffusers.DiffusionPipeline:
    """The pipeline `name`, in float32 and evaluation mode, the same whenever and wherever it is built.

    All parameters are moved from their initial values, some of which are zero and would hide what follows them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = BUILDERS[name]()
        for _, part in sorted(pipeline.components.items()):
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
                for parameter in part.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
                part.requires_grad_(True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def call(name: str, **changes: Any) -> dict[str, Any]:
    """Arguments for calling the pipeline `name`: one image after 2 steps, from a fixed seed."""
    common = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(7), "output_type": "np"}
    if name.startswith("ddpm"):
        return {**common, **changes}
    if name == "dit":
        return {**common, "class_labels": [3], "guidance_scale": 2.0, **changes}
    common |= {"prompt": "a red cat", "guidance_scale": 2.0}
    if name.startswith("flux"):
        common |= {"height": 16, "width": 16, "max_sequence_length": 16}
    if name == "sd3":
        common |= {"max_sequence_length": 16}
    return {**common, **changes}


def ddpm(prediction: str) -> diffusers.DDPMPipeline:
    """An unconditional UNet of pixels [3, 8, 8]."""
    unet = diffusers.UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    scheduler = diffusers.DDPMScheduler(**LINEAR_BETAS, variance_type="fixed_large", prediction_type=prediction)
    return diffusers.DDPMPipeline(unet, scheduler)


def sd15() -> diffusers.StableDiffusionPipeline:
    """Stable Diffusion 1.5: eps, PNDM."""
    scheduler = diffusers.PNDMScheduler(**STABLE_BETAS, skip_prk_steps=True, steps_offset=1)
    return stable_diffusion(scheduler, attention_head_dim=2)


def sd21() -> diffusers.StableDiffusionPipeline:
    """Stable Diffusion 2.1: v, DDIM, linear projections."""
    scheduler = diffusers.DDIMScheduler(
        **STABLE_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction"
    )
    return stable_diffusion(scheduler, attention_head_dim=(1, 2), use_linear_projection=True)


def stable_diffusion(scheduler: Any, **network: Any) -> diffusers.StableDiffusionPipeline:
    """Stable Diffusion, of whatever version."""
    tokenizer = clip_tokenizer()
    return diffusers.StableDiffusionPipeline(
        vae=autoencoder(4, scaling_factor=0.18215),
        text_encoder=clip(tokenizer, 16),
        tokenizer=tokenizer,
        unet=text_unet(("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=16, **network),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> diffusers.StableDiffusionXLPipeline:
    """Stable Diffusion XL 1.0: two text encoders, sizes and crops as conditions, Euler."""
    tokenizers = clip_tokenizer(), clip_tokenizer(pad_token="!")
    unet = text_unet(
        ("DownBlock2D", "CrossAttnDownBlock2D"),
        cross_attention_dim=8 + 16,  # of the two text encoders
        attention_head_dim=(1, 2),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,  # six sizes, the pooled prompt
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(4, scaling_factor=0.13025, force_upcast=True),
        text_encoder=clip(tokenizers[0], 8),
        text_encoder_2=clip(tokenizers[1], 16, projection=True),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(**STABLE_BETAS, steps_offset=1, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def sd3() -> diffusers.StableDiffusion3Pipeline:
    """Stable Diffusion 3: two CLIPs side by side, padded to the width of T5; a flow shifted by 3."""
    tokenizers = clip_tokenizer(), clip_tokenizer(pad_token="!"), t5_tokenizer()
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=8 + 16,
        pos_embed_max_size=8,
    )
    return diffusers.StableDiffusion3Pipeline(
        vae=flow_autoencoder(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clip(tokenizers[0], 8, projection=True),
        text_encoder_2=clip(tokenizers[1], 16, projection=True),
        text_encoder_3=t5(tokenizers[2]),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        tokenizer_3=tokenizers[2],
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


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


BUILDERS: dict[str, Callable[[], diffusers.DiffusionPipeline]] = {
    "ddpm": partial(ddpm, "epsilon"),
    "ddpm_v": partial(ddpm, "v_prediction"),
    "ddpm_sample": partial(ddpm, "sample"),
    "sd15": sd15,
    "sd21": sd21,
    "sdxl": sdxl,
    "sd3": sd3,
}


def save(name: str, folder: Path) -> None:
    """Write the pipeline `name` as diffusers saves it."""
    build(name).save_pretrained(folder)


PIPELINES: dict[str, Callable[[Path], None]] = {name: partial(save, name) for name in BUILDERS}


@pytest.fixture(scope="session")
def pipelines(shared: Path) -> Callable[[str], Path]:
    """The folder of the tiny pipeline of a name, written when a test first asks for it."""
    return lambda name: once(shared, f"pipeline_{name}", PIPELINES[name])
