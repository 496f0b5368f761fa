"""Pretrained models as denoisers: our own folders, diffusers pipelines, published checkpoints, and exact mixtures."""

from distill.teachers.analytic import GaussianMixture
from distill.teachers.description import DESCRIPTION
from distill.teachers.edm import EDM2Net, EDMNet
from distill.teachers.folder import load_denoiser, save_denoiser, save_fine_tuned
from distill.teachers.fresh import fresh_network, network_kind
from distill.teachers.origin import read_origin, write_origin
from distill.teachers.own import OwnNet
from distill.teachers.pipeline import (
    check_pipeline,
    copy_autoencoder,
    copy_pipeline,
    denoiser_files,
    download,
    load_pipeline,
    refuse_file,
)
from distill.teachers.published.checkpoints import read_published
from distill.teachers.unet import UNet, build_unet

__all__ = [
    "DESCRIPTION",
    "EDM2Net",
    "EDMNet",
    "GaussianMixture",
    "OwnNet",
    "UNet",
    "build_unet",
    "check_pipeline",
    "copy_autoencoder",
    "copy_pipeline",
    "denoiser_files",
    "download",
    "fresh_network",
    "load_denoiser",
    "load_pipeline",
    "network_kind",
    "read_origin",
    "read_published",
    "refuse_file",
    "save_denoiser",
    "save_fine_tuned",
    "write_origin",
]
