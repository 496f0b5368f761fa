"""Trains a teacher where none exists: denoising of real images (EDM, arXiv:2206.00364; flow matching)."""

from __future__ import annotations

from functools import partial

import torch
from accelerate import Accelerator

from distill.denoiser import Denoiser
from distill.objectives import denoising_loss
from distill.sampling import sample
from distill.teachers import UNet, build_unet
from trainers.data import Dataset
from trainers.ema import EMA
from trainers.run import TeacherRun
from trainers.session import Session, configure, make_batches
from trainers.state import Player, TrainState
from trainers.step import Terms, update


def build_teacher(run: TeacherRun, accelerator: Accelerator) -> Session:
    """One player, the denoiser of a fresh UNet2DModel, trained on real images."""
    dataset = run.data.load()
    torch.manual_seed(run.seed)
    network = fresh_network(run, dataset)
    denoiser = configure(Denoiser(network, run.path, run.prediction, run.sigma_data), run)
    player = Player("teacher", denoiser, run.optimizer, accelerator)
    batches = make_batches(run, dataset, True, accelerator)
    state = TrainState({"teacher": player}, EMA(denoiser, run.ema))

    def loss(micro: int) -> Terms:
        batch = batches.micro("teacher", state.images, micro)
        assert batch.real is not None
        loss = denoising_loss(player.module, batch.real, batch.cond, run.times, run.weight, batch.random)
        return {"denoising": loss}

    step = partial(update, player, loss, "teacher", run, state, accelerator)
    product = state.ema.module
    return Session(run, accelerator, dataset, batches, state, step, product, partial(sample, product))


def fresh_network(run: TeacherRun, dataset: Dataset) -> UNet:
    """UNet2DModel from `run.network`, with shape and classes from the data."""
    channels, height, width = dataset.shape
    size = height if height == width else (height, width)
    shape = {"sample_size": size, "in_channels": channels, "out_channels": channels}
    return build_unet({**run.network, **shape, "num_class_embeds": dataset.classes or None})
