"""A pretrained thing -> Denoiser."""

from distill.teachers.analytic import GaussianMixture
from distill.teachers.unet import UNet, build_unet, load_denoiser, save_denoiser

__all__ = ["GaussianMixture", "UNet", "build_unet", "load_denoiser", "save_denoiser"]
