"""The session of a distillation, with teacher, fake and one-step generator."""

import copy
from collections.abc import Container, Mapping
from functools import partial
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn

from distill import lora
from distill.denoiser import Denoiser
from distill.generator import Generator
from distill.objectives import Denoisers
from trainers.data import Dataset
from trainers.data.batches import Batches, BatchSizes
from trainers.data.pairs import PairSet
from trainers.engine.collectives import on_main_process
from trainers.engine.networks import compiled_rounds, recompute_activations
from trainers.engine.pace import pace_of
from trainers.engine.player import Player, TrainState, average, power_averages
from trainers.engine.sampler import make_sampler
from trainers.engine.session import Session
from trainers.engine.sharding import Layout, alias_parameters, layouts_of, shard
from trainers.engine.step import distillation_round, global_mean, upcoming
from trainers.io.teacher_hash import is_hash_of, teacher_hash, weights_hash
from trainers.recipe.run import PlayerSettings, Run
from trainers.runs.open import Objects, Opened, encode_data
from trainers.runs.start import load_start
from trainers.runs.storage import low_names, store


def build_distillation(opened: Opened, accelerator: Accelerator) -> Session:
    """Build the session of a distillation. Collective.

    Generator and fake start as copies of the teacher. The generator of a fresh run with a `start` starts as the one of
    that run. The teacher stays frozen, and no optimizer, average or checkpoint holds it.
    """
    run, teacher = cast(Run, opened.run), cast(Denoiser, opened.teacher)
    # The hash takes a read of all weights: the main process computes it for all.
    identity = on_main_process(accelerator, lambda: teacher_identity(run, opened.objects))

    def is_teacher(stored: str | None) -> bool:
        """Return whether a stored hash is that of the teacher. Collective where it is not in today's form."""
        return stored == identity or on_main_process(accelerator, lambda: is_hash_of(stored, run.teacher, identity))

    if opened.pairs is not None and not is_teacher(opened.pairs.teacher):
        opened.pairs.check_teacher(identity)
    dataset = encode_data(opened, accelerator.device, quiet=not accelerator.is_main_process)
    batches = make_batches(run, dataset, accelerator, opened.pairs)
    start = (run.start, identity) if opened.fresh and run.start is not None else None
    low = low_names(run, teacher, batches, accelerator)
    session = assemble(run, accelerator, teacher, dataset, batches, opened.further_teachers, low, start, opened.objects)
    session.source, session.teacher_hash = opened.source, identity
    session.is_teacher = is_teacher
    return session


def make_batches(run: Run, dataset: Dataset, accelerator: Accelerator, pairs: PairSet | None) -> Batches:
    """Return the batches of this process."""
    real, texts = ("real" in run.objective.needs), ("texts" in run.objective.needs)
    sizes = BatchSizes(run.batch_size, run.micro_batches, run.pairs_per_batch)
    rank, world = accelerator.process_index, accelerator.num_processes
    device = accelerator.device
    both = generator_has_real(run)
    return Batches(dataset, sizes, run.seed, run.dtype, real, rank, world, device, pairs, texts, run.workers, both)


def generator_has_real(run: Run) -> bool:
    """Return whether the generator's batches have real samples, for its own loss or for a fake that takes its batch."""
    return bool(run.reuse_samples) or run.objective.generator_reads_real


def assemble(
    run: Run,
    accelerator: Accelerator,
    teacher: Denoiser,
    dataset: Dataset,
    batches: Batches,
    further_teachers: Mapping[str, Denoiser],
    low: frozenset[str],
    start: tuple[str, str] | None = None,
    objects: Objects = Objects(),
) -> Session:
    """Build players, averages and the session around a teacher and its batches. Collective.

    Args:
        run: The recipe.
        accelerator: Ranks, device and collectives.
        teacher: The teacher, in the precision of the run.
        dataset: The data as the teacher takes them.
        batches: The batches of this process.
        further_teachers: The objective's further teachers, by name.
        low: The names of the teacher's parameters that are stored in bfloat16.
        start: The run folder whose generator this one starts as, and the hash of the teacher. None for the teacher.
        objects: The objects of the caller.
    """
    if run.gradient_checkpointing:
        recompute_activations(teacher.network)
    layouts = layouts_of(run, accelerator)
    generator, fake = build_networks(teacher, run, layouts)
    place_networks(layouts, teacher.eval(), generator, fake, accelerator.device, low)
    if start is not None:
        load_start(start[0], run, generator, start[1])
    player = Player("generator", generator, run.generator, accelerator, objects.optimizer)
    players = {"generator": player}
    if fake is not None:
        players["fake"] = Player("fake", fake, run.fake, accelerator, objects.optimizer)
    frozen: dict[str, nn.Module] = {**run.objective.load_frozen(), **further_teachers}
    for network in frozen.values():
        network.to(accelerator.device, run.dtype).requires_grad_(False).eval()
    memory = {name: value.to(accelerator.device) for name, value in run.objective.new_memory().items()}
    ema = average(generator, run.ema, player.frozen_names)
    power_ema = power_averages(generator, run.power_ema, player.frozen_names)
    state = TrainState(players, ema, power_ema, memory=memory)
    state.pace = pace_of(run, state.meter)
    batches.upcoming = partial(upcoming, run, state)
    nets = Denoisers(
        teacher.path,
        teacher,
        no_fake if fake is None else fake,
        frozen,
        memory,
        mean=partial(global_mean, accelerator),
        note=state.meter.note if state.pace is None else state.pace.note,
    )
    model = cast(Generator, ema.module)
    sampler = make_sampler(model, run)
    rounds = compiled_rounds(distillation_round, how) if (how := run.compilation) else distillation_round
    return Session(run, accelerator, dataset, dataset, batches, state, rounds, model, sampler, nets, teacher)


def build_networks(teacher: Denoiser, run: Run, sharded: Container[str] = ()) -> tuple[Generator, nn.Module | None]:
    """Build the networks of generator and fake, and freeze the teacher.

    A network with adapters shares the teacher's own weights. Otherwise a network that will be sharded has parameters of
    its own over the teacher's memory, until it is cut. All other networks are copies.

    Args:
        teacher: The teacher.
        run: The recipe.
        sharded: The names of the networks that will be sharded.

    Returns:
        The generator, and the fake. The fake is None if the objective trains none.
    """

    def copy_teacher(name: str, settings: PlayerSettings) -> Denoiser:
        if settings.lora is not None:
            return lora.share_parameters(teacher)
        return alias_parameters(teacher) if name in sharded else copy.deepcopy(teacher)

    generator = Generator(copy_teacher("generator", run.generator), *run.entry.at(teacher.path)).to(run.dtype)
    fake = copy_teacher("fake", run.fake) if run.objective.trains_fake else None
    teacher.requires_grad_(False)  # after the copies, which train the parameters that require gradients in the teacher
    torch.manual_seed(run.seed)  # for the new weights of adapters and of a discriminator, equal on all ranks
    attach_adapters(generator.denoiser, run.generator)
    if fake is None:
        return generator, None
    attach_adapters(fake, run.fake)
    return generator, run.objective.build_fake(fake).to(run.dtype)


def place_networks(
    layouts: Mapping[str, Layout],
    teacher: Denoiser,
    generator: nn.Module,
    fake: nn.Module | None,
    device: torch.device,
    low: frozenset[str],
) -> None:
    """Put the networks on their devices, in place, and shard those that have a layout. Collective.

    Args:
        layouts: The layouts of the networks that are sharded, by name.
        teacher: The teacher, which is frozen.
        generator: The generator.
        fake: The fake. None if the objective trains none.
        device: The device of this process.
        low: The names of the teacher's parameters that are stored in bfloat16. Of a sharded teacher, all or none.
    """
    if "teacher" in layouts:
        shared = shard(teacher, layouts["teacher"], dtype=torch.bfloat16 if low else None)
    else:
        store(teacher, low)
        teacher.to(device)
        shared = {parameter: parameter for parameter in teacher.parameters()}
    for name, network in (("generator", generator), ("fake", fake)):
        if network is not None and name in layouts:
            shard(network, layouts[name], shared)


def attach_adapters(denoiser: Denoiser, settings: PlayerSettings) -> None:
    """Attach the adapters of a player to a denoiser, if the player has any."""
    if settings.lora is not None:
        lora.attach(denoiser.network, settings.lora)


def no_fake(*arguments: Any) -> Any:
    """Raise TypeError: the objective trains no fake."""
    raise TypeError("this objective trains no fake")


def teacher_identity(run: Run, objects: Objects) -> str:
    """Return the hash that identifies the teacher in checkpoints, which never hold the teacher itself."""
    return teacher_hash(run.teacher) if objects.teacher is None else weights_hash(objects.teacher)
