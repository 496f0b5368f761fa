"""The session of a teacher's training: the denoising of real images (EDM, arXiv:2206.00364, or flow matching)."""

import copy
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator

from distill import lora
from distill.conditions import AUGMENT, Condition
from distill.denoiser import Denoiser
from distill.guidance import drop_conditions
from distill.objectives import denoising_loss
from distill.teachers import fresh_network, load_denoiser, save_denoiser, save_fine_tuned
from trainers.data.batches import Batches, BatchSizes
from trainers.data.read_ahead import Request
from trainers.engine.collectives import on_main_process
from trainers.engine.networks import compiled_rounds, recompute_activations, set_precision
from trainers.engine.player import Player, TrainState, average, power_averages
from trainers.engine.sampler import make_sampler, sampled_teacher
from trainers.engine.session import Session
from trainers.engine.step import Terms, update
from trainers.io.atomic import atomic_folder
from trainers.io.teacher_hash import is_hash_of, teacher_hash
from trainers.recipe.teacher_run import TeacherRun
from trainers.runs.open import Opened, encode_data


def build_teacher(opened: Opened, accelerator: Accelerator) -> Session:
    """Build the session of a teacher's training. Collective.

    Its one player is a denoiser, fresh or that of `start`, which trains on real images.
    """
    run, source = cast(TeacherRun, opened.run), opened.source
    torch.manual_seed(run.seed)
    if run.start is None:
        denoiser, dataset, identity = fresh_denoiser(run, source.shape, source.classes), source, None
    else:
        denoiser = cast(Denoiser, opened.teacher)
        # The hash takes a read of all weights: the main process computes it for all.
        identity = on_main_process(accelerator, partial(teacher_hash, run.start))
        dataset = encode_data(opened, accelerator.device, quiet=not accelerator.is_main_process)
        torch.manual_seed(run.seed)  # again: an encoder that was loaded, where the cache was empty, has drawn numbers
        if run.lora is not None:
            lora.attach(denoiser.network, run.lora)
    if run.gradient_checkpointing:
        recompute_activations(denoiser.network)
    player = Player("teacher", denoiser, run.optimizer, accelerator, opened.objects.optimizer)
    sizes = BatchSizes(run.batch_size, run.micro_batches)
    rank, world = accelerator.process_index, accelerator.num_processes
    frozen = player.frozen_names
    ema, power_ema = average(denoiser, run.ema, frozen), power_averages(denoiser, run.power_ema, frozen)
    state = TrainState({"teacher": player}, ema, power_ema)
    batches = Batches(dataset, sizes, run.seed, run.dtype, True, rank, world, accelerator.device, workers=run.workers)
    batches.upcoming = partial(upcoming_batches, run, state)
    model = cast(Denoiser, state.ema.module)
    sampler = make_sampler(sampled_teacher(run, model), run)
    rounds = compiled_rounds(teacher_round, how) if (how := run.compilation) else teacher_round
    session = Session(run, accelerator, dataset, source, batches, state, rounds, model, sampler, finish=write_result)
    if run.start is not None and identity is not None:
        session.teacher_hash = identity
        session.is_teacher = partial(_is_start, run.start, identity)
    return session


def _is_start(folder: str, identity: str, stored: str | None) -> bool:
    """Return whether a stored hash is that of the teacher in `folder`, whose hash in today's form is `identity`."""
    return is_hash_of(stored, folder, identity)


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
    assert batch.real is not None and run.times is not None, "both are checked before a run begins"
    x0, cond, random, denoiser = batch.real, batch.cond, batch.random, cast(Denoiser, player.bare)
    if run.label_dropout:
        cond = drop_conditions(cond, denoiser.null(cond), run.label_dropout, random)
    if run.augmentation is not None:
        x0, labels = run.augmentation(x0, random.stream("augmentation"))
        cond = Condition({**cond, AUGMENT: labels})
    law = run.times, run.weight, random, denoiser.sigma_data, run.uncertainty
    return {"denoising": denoising_loss(player.module, denoiser.path, x0, cond, *law)}


def fresh_denoiser(run: TeacherRun, shape: tuple[int, ...], classes: int) -> Denoiser:
    """Return a denoiser with a fresh network, of the run's path, prediction and precision.

    Args:
        run: The recipe of a fresh network, which holds the network's config.
        shape: (C, *spatial) of a sample.
        classes: The number of classes. 0 without labels.
    """
    assert run.network is not None and run.path is not None and run.prediction is not None, "without a start, they are"
    network = fresh_network(run.network, shape, classes, null=run.label_dropout > 0)
    return set_precision(Denoiser(network, run.path, run.prediction, run.sigma_data or 0.5), run)


def start_denoiser(run: TeacherRun) -> Denoiser:
    """Return the denoiser of `start` with new adapters, if the run trains any, in the run's precision."""
    denoiser = set_precision(load_denoiser(cast(str, run.start)), run)
    if run.lora is not None:
        lora.attach(denoiser.network, run.lora)
    return denoiser


def write_result(session: Session, folder: Path) -> None:
    """Write the averaged teacher of a finished run, with the names of its classes, into the run folder."""
    teacher, run = cast(Denoiser, session.model), cast(TeacherRun, session.run)
    teacher.network.class_names = session.source.class_names
    write_teacher(teacher, folder, run.start)


def write_teacher(teacher: Denoiser, folder: Path, start: str | None = None) -> None:
    """Write a teacher, in float32, to `folder`/teacher. A recipe names this folder as its `teacher`.

    Args:
        teacher: The teacher, whose adapters are merged into its weights.
        folder: The run folder.
        start: The folder of the teacher that was fine-tuned. None for a fresh one.
    """
    teacher = copy.deepcopy(teacher).float()
    lora.merge(teacher)
    with atomic_folder(folder / "teacher") as staging:
        if start is None:
            save_denoiser(teacher, staging)
        else:
            save_fine_tuned(teacher, start, staging)
