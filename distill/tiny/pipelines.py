"""Tiny diffusers pipelines with random weights: the real classes and the published schedulers, made without a network.

Widths differ wherever two of them could be confused (the two CLIP encoders of SDXL, text and image channels).
Every image is 16x16 with 8x8 latents unless said otherwise; the autoencoders halve each side once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers  # lazy: a class is imported when it is first used
import torch

from distill.tiny.parts import (
    autoencoder,
    clip,
    deep_autoencoder,
    flow_autoencoder,
    gemma,
    t5,
    text_unet,
    texts,
)

STABLE_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LINEAR_BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}

TRANSFORMER = {"sample_size": 8, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 3}


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
    return diffusers.StableDiffusionPipeline(
        **texts(clip(16)),
        vae=autoencoder(4, scaling_factor=0.18215),
        unet=text_unet(("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=16, **network),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> diffusers.StableDiffusionXLPipeline:
    """Stable Diffusion XL 1.0: two text encoders, sizes and crops as conditions, Euler."""
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
        **texts(clip(8), clip(16, projection=True, pad="!")),
        vae=autoencoder(4, scaling_factor=0.13025, force_upcast=True),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(**STABLE_BETAS, steps_offset=1, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def sd3() -> diffusers.StableDiffusion3Pipeline:
    """Stable Diffusion 3: two CLIPs side by side, padded to the width of T5; a flow shifted by 3."""
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
        **texts(clip(8, projection=True), clip(16, projection=True, pad="!"), t5()),
        vae=flow_autoencoder(scaling_factor=1.5305, shift_factor=0.0609),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def dit() -> diffusers.DiTPipeline:
    """DiT: classes (its pipeline fixes their number, 1000), a learned variance beside eps."""
    transformer = diffusers.DiTTransformer2DModel(
        **TRANSFORMER, out_channels=8, num_embeds_ada_norm=1000, norm_type="ada_norm_zero"
    )
    scheduler = diffusers.DDIMScheduler(**LINEAR_BETAS, clip_sample=False)
    return diffusers.DiTPipeline(transformer, autoencoder(4, scaling_factor=0.18215), scheduler)


def pixart(kind: type[diffusers.DiffusionPipeline], scaling: float, size: int = 8) -> diffusers.DiffusionPipeline:
    """PixArt-alpha and PixArt-Sigma: T5, a learned variance beside eps, DPM-Solver.

    At size 128 the pipeline of PixArt-alpha gives the network sizes and aspect ratios too, as in its 1024 px models.
    """
    transformer = diffusers.PixArtTransformer2DModel(
        **{**TRANSFORMER, "sample_size": size}, out_channels=8, cross_attention_dim=24, caption_channels=32
    )
    return kind(
        **texts(t5()),
        vae=autoencoder(4, scaling_factor=scaling),
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(**LINEAR_BETAS),
    )


def flux(guidance: bool) -> diffusers.FluxPipeline:
    """FLUX.1, dev (with guidance as a condition; the flow is shifted more the larger the image) or schnell."""
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=4 * 16,  # 2x2 latents are one token
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=guidance,
        axes_dims_rope=(2, 2, 4),
    )
    return diffusers.FluxPipeline(
        **texts(clip(16), t5()),
        vae=flow_autoencoder(scaling_factor=0.3611, shift_factor=0.1159),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            base_image_seq_len=256,
            max_image_seq_len=4096,
            base_shift=0.5,
            max_shift=1.15,
            shift=3.0 if guidance else 1.0,
            use_dynamic_shifting=guidance,
        ),
    )


def sana(scheduler: Any, **network: Any) -> diffusers.SanaPipeline:
    """Sana: a flow shifted by 3 on latents [4, 8, 8] of images [3, 32, 32], text from a Gemma 2."""
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=24,
        sample_size=8,
        **network,
    )
    return diffusers.SanaPipeline(
        **texts(gemma()), vae=deep_autoencoder(), transformer=transformer, scheduler=scheduler
    )


def sana_dpm() -> diffusers.SanaPipeline:
    """Sana as its makers convert it."""
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return sana(diffusers.DPMSolverMultistepScheduler(**flow))


def sana_euler() -> diffusers.SanaPipeline:
    """Sana with the other scheduler of that conversion, normed queries and keys (as Sana 1.5), times in [0, 1]."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return sana(scheduler, qk_norm="rms_norm_across_heads", timestep_scale=0.001)


BUILDERS: dict[str, Callable[[], diffusers.DiffusionPipeline]] = {
    "ddpm": partial(ddpm, "epsilon"),
    "ddpm_v": partial(ddpm, "v_prediction"),
    "ddpm_sample": partial(ddpm, "sample"),
    "sd15": sd15,
    "sd21": sd21,
    "sdxl": sdxl,
    "sd3": sd3,
    "dit": dit,
    "pixart_alpha": lambda: pixart(diffusers.PixArtAlphaPipeline, 0.18215),
    "pixart_alpha_1024": lambda: pixart(diffusers.PixArtAlphaPipeline, 0.18215, size=128),
    "pixart_sigma": lambda: pixart(diffusers.PixArtSigmaPipeline, 0.13025),
    "flux": partial(flux, guidance=True),
    "flux_schnell": partial(flux, guidance=False),
    "sana": sana_dpm,
    "sana_euler": sana_euler,
}
