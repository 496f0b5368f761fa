"""Tiny networks of EDM and EDM2 in the place of recipes' teachers.

Samples are pixels [3, 8, 8] or latents [4, 8, 8], with 10 classes or none.
"""

from typing import Any

import torch

from distill.denoiser import Denoiser
from distill.encoders.latents import Normalisation
from distill.paths import EDM
from distill.teachers.edm import EDM2Net, EDMNet

SMALL: dict[str, Any] = {"img_resolution": 8, "img_channels": 3, "channel_mult": [1, 2], "num_blocks": 1}
DDPMPP = SMALL | {"model_type": "SongUNet", "model_channels": 8, "attn_resolutions": [4], "augment_dim": 9}
SETTINGS: dict[str, dict[str, Any]] = {  # the comments name the data of the published teachers
    "edm": DDPMPP,  # CIFAR-10 without labels, FFHQ, AFHQ
    "edm_cond": DDPMPP | {"label_dim": 10},  # CIFAR-10
    "adm": SMALL | {"model_channels": 32, "attn_resolutions": [], "label_dim": 10},  # ImageNet 64
    "edm2": SMALL
    | {"img_channels": 4, "model_channels": 8, "attn_resolutions": [4], "channels_per_head": 8}
    | {"label_dim": 10, "logvar_channels": 8},
}

LATENTS = Normalisation(mean=(5.81, 3.25, 0.12, -2.15), std=(8.34, 9.24, 7.42, 6.56))  # as EDM2's encoder


def network(name: str) -> Denoiser:
    """Build the denoiser `name`, in float32 and eval mode, with the same weights each time.

    No weight is zero, since a zero at the output would hide the layers before it.
    """
    settings = SETTINGS[name]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        net = EDM2Net(**settings) if name == "edm2" else EDMNet(**settings)
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Denoiser(net, EDM(), "edm", latents=LATENTS if name == "edm2" else False).eval()
