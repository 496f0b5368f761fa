"""Trains a teacher where none exists: denoising of real images (EDM, arXiv:2206.00364; flow matching)."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator

from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.guidance import drop_conditions
from distill.objectives import denoising_loss
from distill.teachers import build_unet, save_denoiser
from trainers.data import Dataset
from trainers.engine.ema import EMA, power_averages
from trainers.engine.player import Player, TrainState
from trainers.engine.session import Session, make_batches, make_sampler, recompute_blocks, set_precision
from trainers.engine.step import Terms, update
from trainers.io.atomic import atomic_folder
from trainers.recipe.run import TeacherRun


def build_teacher(run: TeacherRun, accelerator: Accelerator) -> Session:
    """One player, the denoiser of a fresh UNet2DModel, trained on real images."""
    dataset = run.data.load()
    torch.manual_seed(run.seed)
    denoiser = set_precision(fresh_denoiser(run, dataset), run)
    if run.gradient_checkpointing:
        recompute_blocks(denoiser.network)
    player = Player("teacher", denoiser, run.optimizer, accelerator)
    batches = make_batches(run, dataset, True, accelerator)
    state = TrainState({"teacher": player}, EMA(denoiser, run.ema), power_averages(denoiser, run.power_ema))

    def loss(micro: int) -> Terms:
        batch = batches.micro("teacher", state.images, micro)
        assert batch.real is not None
        x0, cond, random = batch.real, batch.cond, batch.random
        if run.label_dropout:
            cond = drop_conditions(cond, denoiser.null(cond), run.label_dropout, random)
        terms = denoising_loss(player.module, run.path, x0, cond, run.times, run.weight, random, run.sigma_data)
        return {"denoising": terms}

    step = partial(update, player, loss, "teacher", run, state, accelerator)
    product = cast(Denoiser, state.ema.module)
    return Session(run, accelerator, dataset, dataset, batches, state, step, product, make_sampler(product, run))


def fresh_denoiser(run: TeacherRun, dataset: Dataset) -> Denoiser:
    """A UNet2DModel from `run.network`, with shape and classes from the data, under the run's path and prediction."""
    if dataset.read is None:
        raise UserError(f"data: a teacher is trained on real images, {dataset.name} has none")
    if dataset.prompts is not None:
        raise UserError(f"data: a teacher is trained on labels or none, {dataset.name} has prompts")
    channels, height, width = dataset.shape
    size = height if height == width else (height, width)
    shape = {"sample_size": size, "in_channels": channels, "out_channels": channels}
    if run.label_dropout and not dataset.classes:
        raise UserError(f"label_dropout: {dataset.name} has no labels to drop; set it to 0")
    null = dataset.classes if run.label_dropout else None
    embeddings = dataset.classes + (null is not None)
    network = build_unet({**run.network, **shape, "num_class_embeds": embeddings or None}, null)
    return Denoiser(network, run.path, run.prediction, run.sigma_data)


def write_teacher(teacher: Denoiser, folder: Path) -> None:
    """Write `folder`/teacher, which `teacher:` of a distillation recipe names."""
    with atomic_folder(folder / "teacher") as staging:
        save_denoiser(copy.deepcopy(teacher).float(), staging)
