"""Tiny diffusers pipelines with random weights, of the real classes and with the published schedulers.

Widths differ wherever code could confuse two of them, such as those of SDXL's two CLIP encoders. Every image is 16x16
with latents of 8x8 unless a docstring says otherwise. The autoencoders halve each side once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers  # it imports a class at its first use
import torch

from distill.tiny.parts import autoencoder, clip, deep_autoencoder, flow_autoencoder, gemma, t5, text_unet, texts

STABLE_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LINEAR_BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}

TRANSFORMER = {"sample_size": 8, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 3}


def build(name: str) -> diffusers.DiffusionPipeline:
    """Build the pipeline `name`, in float32 and eval mode, with the same weights each time and everywhere.

    Noise is added to all parameters, because some initial values are zero and would hide the layers around them.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        pipeline = BUILDERS[name]()
        for _, part in sorted(pipeline.components.items()):
            if isinstance(part, torch.nn.Module):
                for parameter in part.eval().requires_grad_().parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def ddpm(prediction: str) -> diffusers.DDPMPipeline:
    """Build an unconditional U-Net of pixels [3, 8, 8]."""
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
    """Build Stable Diffusion 1.5, which predicts noise, with PNDM."""
    scheduler = diffusers.PNDMScheduler(**STABLE_BETAS, skip_prk_steps=True, steps_offset=1)
    return stable_diffusion(scheduler, attention_head_dim=2)


def sd21() -> diffusers.StableDiffusionPipeline:
    """Build Stable Diffusion 2.1, which predicts v, with DDIM and linear projections."""
    scheduler = diffusers.DDIMScheduler(
        **STABLE_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction"
    )
    return stable_diffusion(scheduler, attention_head_dim=(1, 2), use_linear_projection=True)


def stable_diffusion(scheduler: Any, **network: Any) -> diffusers.StableDiffusionPipeline:
    """Build Stable Diffusion of any version."""
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
    """Build Stable Diffusion XL 1.0 with two text encoders, with sizes and crops as conditions, and with Euler."""
    unet = text_unet(
        ("DownBlock2D", "CrossAttnDownBlock2D"),
        cross_attention_dim=8 + 16,  # the widths of the two text encoders
        attention_head_dim=(1, 2),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,  # six numbers of sizes and crops, and the pooled prompt
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
    """Build Stable Diffusion 3, a flow with a shift of 3.

    The embeddings of its two CLIPs lie side by side, and are padded to the width of T5's.
    """
    transformer = diffusers.SD3Transformer2DModel(
        **TRANSFORMER | {"in_channels": 16, "num_attention_heads": 2},
        patch_size=2,
        out_channels=16,
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
    """Build DiT, which predicts noise and a variance.

    It has 1000 classes, because its pipeline fixes that number.
    """
    transformer = diffusers.DiTTransformer2DModel(
        **TRANSFORMER, out_channels=8, num_embeds_ada_norm=1000, norm_type="ada_norm_zero"
    )
    scheduler = diffusers.DDIMScheduler(**LINEAR_BETAS, clip_sample=False)
    return diffusers.DiTPipeline(transformer, autoencoder(4, scaling_factor=0.18215), scheduler)


def pixart(kind: type[diffusers.DiffusionPipeline], scaling: float, size: int = 8) -> diffusers.DiffusionPipeline:
    """Build PixArt-alpha or PixArt-Sigma, which predict noise and a variance, with T5 and DPM-Solver.

    At size 128 PixArt-alpha's pipeline also gives the network sizes and aspect ratios, as for its 1024 pixel models.
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
    """Build FLUX.1-dev or FLUX.1-schnell.

    With `guidance` it is FLUX.1-dev, whose guidance scale is a condition, and whose shift grows with the image.
    """
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=4 * 16,  # a token holds 2x2 latents
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=guidance,
        axes_dims_rope=(2, 2, 4),
    )
    shift = 3.0 if guidance else 1.0
    return diffusers.FluxPipeline(
        **texts(clip(16), t5()),
        vae=flow_autoencoder(scaling_factor=0.3611, shift_factor=0.1159),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=guidance),
    )


def sana(scheduler: Any, **network: Any) -> diffusers.SanaPipeline:
    """Build Sana, a flow of latents [4, 8, 8] of images [3, 32, 32], with a Gemma 2."""
    transformer = diffusers.SanaTransformer2DModel(
        **TRANSFORMER | {"num_attention_heads": 2},
        out_channels=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=24,
        **network,
    )
    encoders, vae = texts(gemma()), deep_autoencoder()
    return diffusers.SanaPipeline(**encoders, vae=vae, transformer=transformer, scheduler=scheduler)


def sana_dpm() -> diffusers.SanaPipeline:
    """Build Sana with the scheduler of its authors' conversion, and a shift of 3."""
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return sana(diffusers.DPMSolverMultistepScheduler(**flow))


def sana_euler() -> diffusers.SanaPipeline:
    """Build Sana as 1.5 is, with normalised queries and keys and times in [0, 1], and with the other scheduler."""
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
