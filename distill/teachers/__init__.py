"""A pretrained thing -> Denoiser."""

from distill.teachers.analytic import GaussianMixture
from distill.teachers.ddpm import read_ddpm
from distill.teachers.edm import EDM2Net, EDMNet
from distill.teachers.folder import DESCRIPTION, Network, load_denoiser, save_denoiser
from distill.teachers.published import Found, read_published
from distill.teachers.unet import UNet, build_unet

__all__ = [
    "DESCRIPTION",
    "EDM2Net",
    "EDMNet",
    "Found",
    "GaussianMixture",
    "Network",
    "UNet",
    "build_unet",
    "load_denoiser",
    "read_ddpm",
    "read_published",
    "save_denoiser",
]
