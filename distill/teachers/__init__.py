"""A pretrained thing -> Denoiser."""

from distill.teachers.analytic import GaussianMixture
from distill.teachers.edm import EDM2Net, EDMNet
from distill.teachers.folder import DESCRIPTION, Network, load_denoiser, save_denoiser
from distill.teachers.unet import UNet, build_unet

__all__ = [
    "DESCRIPTION",
    "EDM2Net",
    "EDMNet",
    "GaussianMixture",
    "Network",
    "UNet",
    "build_unet",
    "load_denoiser",
    "save_denoiser",
]
