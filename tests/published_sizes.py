"""The teachers of the papers' recipes at their published sizes, as folders of configs without weights.

The numbers are those of the published `config.json` files of the pipelines, and of the arguments in the checkpoints of
EDM and EDM2. A plan needs no more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from distill.rewards.image_reward import ImageRewardScore
from distill.tiny.rewards import bert_tokenizer

VP = {"model_type": "SongUNet", "embedding_type": "positional", "encoder_type": "standard", "augment_dim": 9}
VP |= {"channel_mult_noise": 1, "resample_filter": [1, 1], "model_channels": 128, "dropout": 0.13}
PIXELS64 = VP | {"img_resolution": 64, "channel_mult": [1, 2, 2, 2], "dropout": 0.05}
ADM = {
    "model_type": "DhariwalUNet",
    "img_resolution": 64,
    "model_channels": 192,
    "channel_mult": [1, 2, 3, 4],
    "dropout": 0.1,
}
EDM2_S = {"img_resolution": 64, "img_channels": 4, "label_dim": 1000, "model_channels": 192}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
UNET = {"sample_size": 64, "layers_per_block": 2, "block_out_channels": (320, 640, 1280, 1280)}
BLOCKS: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
XL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
DIT3: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
PIXART: dict[str, Any] = {
    "sample_size": 64,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "attention_head_dim": 72,
    "num_attention_heads": 16,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
}


def edm(folder: Path, kind: str = "edm", latents: bool = False, **settings: Any) -> None:
    """Write the folder of a network of EDM or EDM2, with the autoencoder of Stable Diffusion for latents."""
    data = {"img_channels": 3} | settings
    shape = [data["img_channels"], data["img_resolution"], data["img_resolution"]]
    description: dict[str, Any] = {
        "path": {"name": "edm"},
        "prediction": "edm",
        "sigma_data": 0.5,
        "shape": shape,
        "classes": settings.get("label_dim", 0),
        "network": {"name": kind, **data},
    }
    folder.mkdir(parents=True)
    if latents:
        description["latents"] = {"mean": [0.0] * 4, "std": [1.0] * 4}
        autoencoder(4).save_config(folder / "vae")
    (folder / "denoiser.json").write_text(json.dumps(description))


def autoencoder(channels: int) -> diffusers.AutoencoderKL:
    """Return the autoencoder of Stable Diffusion, without values."""
    with torch.device("meta"):
        return diffusers.AutoencoderKL(
            latent_channels=channels,
            sample_size=512,
            layers_per_block=2,
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )


def pipeline(folder: Path, kind: str, part: str, network: str, scheduler: Any, **settings: Any) -> None:
    """Write the folder of a pipeline: the configs of its network, its autoencoder and its scheduler."""
    with torch.device("meta"):
        model = getattr(diffusers, network)(**settings)
    parts = {part: model, "vae": autoencoder(settings.get("in_channels", 4)), "scheduler": scheduler}
    for name, one in parts.items():
        one.save_config(folder / name)
    index = {name: ["diffusers", type(one).__name__] for name, one in parts.items()}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind, **index}))


def unet(folder: Path, kind: str = "StableDiffusionPipeline", **settings: Any) -> None:
    """Write the folder of Stable Diffusion of any version."""
    noise = diffusers.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipeline(folder, kind, "unet", "UNet2DConditionModel", noise, **UNET | settings)


def sd3(folder: Path) -> None:
    """Write the folder of Stable Diffusion 3 medium."""
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline(folder, "StableDiffusion3Pipeline", "transformer", "SD3Transformer2DModel", flow, **DIT3)


def pixart(folder: Path) -> None:
    """Write the folder of PixArt-alpha for 512 pixels."""
    noise = diffusers.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
    pipeline(folder, "PixArtAlphaPipeline", "transformer", "PixArtTransformer2DModel", noise, **PIXART)


TEACHERS: dict[str, Callable[[Path], None]] = {  # the last part of a recipe's teacher -> its writer
    "edm-cifar10-uncond": partial(edm, **VP, img_resolution=32, channel_mult=[2, 2, 2]),
    "edm-cifar10-cond": partial(edm, **VP, img_resolution=32, channel_mult=[2, 2, 2], label_dim=10),
    "edm-ffhq64": partial(edm, **PIXELS64),
    "edm-afhq64": partial(edm, **PIXELS64 | {"dropout": 0.25}),
    "edm-imagenet64": partial(edm, **ADM, label_dim=1000),
    "edm2-img512-s": partial(edm, kind="edm2", latents=True, **EDM2_S),
    "sd15": partial(unet, **BLOCKS, cross_attention_dim=768, attention_head_dim=8),
    "sd21": partial(
        unet, **BLOCKS, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
    ),
    "sdxl": partial(unet, kind="StableDiffusionXLPipeline", **XL),
    "sd3": sd3,
    "pixart": pixart,
}


def image_reward_score() -> ImageRewardScore:
    """Return ImageReward-v1.0, BLIP's ViT-L/16 and its BERT with cross-attention, without values."""
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    text = {"encoder_hidden_size": 1024, "num_attention_heads": 12}
    with torch.device("meta"):
        images = transformers.BlipVisionModel(transformers.BlipVisionConfig(**vision, image_size=224))
        words = transformers.BlipTextModel(transformers.BlipTextConfig(**text), add_pooling_layer=False)
        head = torch.nn.Sequential(*(torch.nn.Linear(*pair) for pair in pairwise((768, 1024, 128, 64, 16, 1))))
        score = ImageRewardScore(images, words, head, bert_tokenizer()).requires_grad_(False)
    score._apply(lambda value: value)  # in a plan, whose `_apply` makes the tensors fake
    return score
