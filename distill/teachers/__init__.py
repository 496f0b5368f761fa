"""A pretrained thing -> Denoiser."""

from distill.teachers.analytic import GaussianMixture
from distill.teachers.unet import DESCRIPTION, UNet, build_unet, load_denoiser, save_denoiser

__all__ = ["DESCRIPTION", "GaussianMixture", "UNet", "build_unet", "load_denoiser", "save_denoiser"]
