"""The session of a teacher's training: the denoising of real images (EDM, arXiv:2206.00364, or flow matching)."""

import copy
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator

from distill.denoiser import Denoiser
from distill.guidance import drop_conditions
from distill.objectives import denoising_loss
from distill.teachers import fresh_unet, save_denoiser
from trainers.data.batches import Batches, BatchSizes
from trainers.data.read_ahead import Request
from trainers.engine.networks import compiled_rounds, recompute_activations, set_precision
from trainers.engine.player import Player, TrainState, average, power_averages
from trainers.engine.sampler import make_sampler, sampled_teacher
from trainers.engine.session import Session
from trainers.engine.step import Terms, update
from trainers.io.atomic import atomic_folder
from trainers.recipe.run import TeacherRun
from trainers.runs.open import Opened


def build_teacher(opened: Opened, accelerator: Accelerator) -> Session:
    """Build the session of a teacher's training. Collective.

    Its one player is a denoiser with a fresh UNet2DModel, which trains on real images.
    """
    run, dataset = cast(TeacherRun, opened.run), opened.source
    torch.manual_seed(run.seed)
    denoiser = fresh_denoiser(run, dataset.shape, dataset.classes)
    if run.gradient_checkpointing:
        recompute_activations(denoiser.network)
    player = Player("teacher", denoiser, run.optimizer, accelerator, opened.objects.optimizer)
    sizes = BatchSizes(run.batch_size, run.micro_batches)
    rank, world = accelerator.process_index, accelerator.num_processes
    state = TrainState({"teacher": player}, average(denoiser, run.ema), power_averages(denoiser, run.power_ema))
    batches = Batches(dataset, sizes, run.seed, run.dtype, True, rank, world, accelerator.device, workers=run.workers)
    batches.upcoming = partial(upcoming_batches, run, state)
    model = cast(Denoiser, state.ema.module)
    sampler = make_sampler(sampled_teacher(run, model), run)
    rounds = compiled_rounds(teacher_round, how) if (how := run.compilation) else teacher_round
    return Session(run, accelerator, dataset, dataset, batches, state, rounds, model, sampler, finish=write_result)


def teacher_round(session: Session) -> None:
    """Update a teacher that trains. Collective."""
    update(session, "teacher", "teacher", partial(teacher_terms, session))


def upcoming_batches(run: TeacherRun, state: TrainState) -> Iterator[Request]:
    """Yield the micro-batches that this round and the following ones ask for, without end."""
    for images in count(state.images, run.batch_size):
        yield from (Request("teacher", images, micro) for micro in range(run.micro_batches))


def teacher_terms(session: Session, micro: int) -> Terms:
    """Return the denoising loss [B] of a teacher that trains, on real samples."""
    run, player = cast(TeacherRun, session.run), session.state.players["teacher"]
    batch = session.batches.micro("teacher", session.state.images, micro)
    assert batch.real is not None
    x0, cond, random = batch.real, batch.cond, batch.random
    if run.label_dropout:
        null = cast(Denoiser, player.bare).null(cond)
        cond = drop_conditions(cond, null, run.label_dropout, random)
    terms = denoising_loss(player.module, run.path, x0, cond, run.times, run.weight, random, run.sigma_data)
    return {"denoising": terms}


def fresh_denoiser(run: TeacherRun, shape: tuple[int, ...], classes: int) -> Denoiser:
    """Return a denoiser with a fresh UNet2DModel, of the run's path, prediction and precision.

    Args:
        run: The recipe, which holds the network's config.
        shape: (C, H, W) of a sample.
        classes: The number of classes. 0 without labels.
    """
    network = fresh_unet(run.network, shape, classes, null=run.label_dropout > 0)
    return set_precision(Denoiser(network, run.path, run.prediction, run.sigma_data), run)


def write_result(session: Session, folder: Path) -> None:
    """Write the averaged teacher of a finished run, with the names of its classes, into the run folder."""
    teacher = cast(Denoiser, session.model)
    teacher.network.class_names = session.source.class_names
    write_teacher(teacher, folder)


def write_teacher(teacher: Denoiser, folder: Path) -> None:
    """Write a teacher, in float32, to `folder`/teacher. A recipe names this folder as its `teacher`."""
    with atomic_folder(folder / "teacher") as staging:
        save_denoiser(copy.deepcopy(teacher).float(), staging)
