"""Builds the session of a distillation: teacher, fake and one-step generator."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Container, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn

from distill import lora
from distill.denoiser import Denoiser
from distill.discriminator import R1
from distill.encoders.encoder import text_encoder
from distill.errors import UserError
from distill.generator import Generator
from distill.objectives import Denoisers, Objective
from distill.teachers import DESCRIPTION, Network, denoiser_files, load_denoiser
from trainers.checkpoints import checkpoint
from trainers.data import Dataset
from trainers.data.batches import Batches
from trainers.data.dataset import UNKNOWN
from trainers.data.encode import encode_dataset
from trainers.data.pairs import PairSet, open_pairs
from trainers.engine.ema import EMA, power_averages
from trainers.engine.player import Player, TrainState, frozen
from trainers.engine.session import Session, make_batches, make_sampler, recompute_blocks, set_precision
from trainers.engine.sharding import Layout, alias, layouts_of, shard
from trainers.engine.step import distillation_step
from trainers.evaluation import check_images
from trainers.io.atomic import sha256
from trainers.recipe.run import GeneratorInput, PlayerSettings, Run
from trainers.recipe.strict_yaml import build, dump, load_yaml


def build_distillation(run: Run, accelerator: Accelerator, fresh: bool = True) -> Session:
    """Generator and fake start as the teacher, which stays frozen and outside optimizer, EMA, checkpoint.

    A `fresh` run's generator, and with it the average, starts as `run.start` says.
    """
    source = run.data.load()
    teacher = load_teacher(run, source)
    check_objective(run, source, teacher)
    real = "real" in run.objective.needs
    dataset = encode_dataset(run, source, teacher, accelerator.device, real, quiet=not accelerator.is_main_process)
    batches = make_batches(run, dataset, real, accelerator, load_pairs(run, teacher))
    session = assemble(run, accelerator, teacher, dataset, batches, run.start if fresh else None)
    return replace(session, source=source, teacher_hash=teacher_hash(run.teacher))


def assemble(
    run: Run, accelerator: Accelerator, teacher: Denoiser, dataset: Dataset, batches: Batches, start: str | None = None
) -> Session:
    """Players, averages and the step around a `teacher` and its `batches`, whatever these are made of."""
    if run.gradient_checkpointing:
        recompute_blocks(teacher.network)
    layouts = layouts_of(run, accelerator)
    generator, fake = build_networks(teacher, run, layouts)
    place_networks(run, layouts, teacher.eval(), generator, fake, accelerator.device)
    if start is not None:
        load_start(start, run, generator)
    players = {"generator": (player := Player("generator", generator, run.generator, accelerator))}
    if fake is not None:
        players["fake"] = Player("fake", fake, run.fake, accelerator)
    others = run.objective.load_frozen()
    for network in others.values():
        network.to(accelerator.device, run.dtype).requires_grad_(False).eval()
    memory = {name: value.to(accelerator.device) for name, value in run.objective.new_memory().items()}
    ema, power_ema = (
        EMA(generator, run.ema, player.frozen_names),
        power_averages(generator, run.power_ema, player.frozen_names),
    )
    state = TrainState(players, ema, power_ema, memory=memory)
    nets = Denoisers(teacher.path, teacher, no_fake if fake is None else fake, others, memory)
    step = partial(distillation_step, run, state, nets, batches, accelerator)
    product = state.ema.module
    sampler = make_sampler(product, run)
    return Session(run, accelerator, dataset, dataset, batches, state, step, product, sampler, teacher)


def build_networks(teacher: Denoiser, run: Run, sharded: Container[str] = ()) -> tuple[Generator, nn.Module | None]:
    """The networks of generator and fake (None where the objective trains none), the `teacher` being frozen from here.

    Each has a copy of its own, or adapters on the teacher's own weights. What is to be `sharded` is no copy yet.
    """

    def begin(name: str, settings: PlayerSettings) -> Denoiser:
        if settings.lora is not None:
            return lora.share(teacher)
        return alias(teacher) if name in sharded else copy.deepcopy(teacher)

    generator = one_step_generator(begin("generator", run.generator), run).to(run.dtype)
    fake = begin("fake", run.fake) if run.objective.trains_fake else None
    teacher.requires_grad_(False)  # after the copies, which train what was made to be trained
    torch.manual_seed(run.seed)  # of the new weights of adapters and of a discriminator
    attach_adapters(generator.denoiser, run.generator)
    if fake is None:
        return generator, None
    attach_adapters(fake, run.fake)
    return generator, run.objective.build_fake(fake).to(run.dtype)


def place_networks(
    run: Run,
    layouts: Mapping[str, Layout],
    teacher: Denoiser,
    generator: nn.Module,
    fake: nn.Module | None,
    device: torch.device,
) -> None:
    """Shard what has a layout; the teacher is stored in the precision of compute, since it is frozen."""
    stored = torch.bfloat16 if run.precision == "bfloat16" else None
    if "teacher" in layouts:
        shared = shard(teacher, layouts["teacher"], dtype=stored)
    else:
        for parameter in teacher.network.parameters() if stored else ():
            parameter.data = parameter.data.to(stored)  # but not the buffers: frequencies of Fourier features
        teacher.to(device)
        shared = {parameter: parameter for parameter in teacher.parameters()}
    for name, network in (("generator", generator), ("fake", fake)):
        if network is not None and name in layouts:
            shard(network, layouts[name], shared)


def one_step_generator(denoiser: Denoiser, run: Run) -> Generator:
    """The generator of `run` around `denoiser`; raises UserError when its entry is no time of the path."""
    return Generator(denoiser, *run.entry.at(denoiser.path))


def attach_adapters(denoiser: Denoiser, settings: PlayerSettings) -> None:
    """Put on the adapters of a player, where it has some."""
    if settings.lora is not None:
        lora.attach(denoiser.network, settings.lora)


def no_fake(*arguments: Any) -> Any:
    """Stands where a run has no fake."""
    raise TypeError("this objective trains no fake")


def load_start(start: str, run: Run, generator: Generator) -> None:
    """Load the averaged generator of a run folder (its newest valid checkpoint's), or of its best/, into `generator`.

    Raises UserError when there is none, or when it is another network or is asked otherwise than `run` asks its own.
    """
    folder = Path(start)
    best = folder.name == "best"
    root = folder.parent if best else folder
    if not (root / "run.yaml").is_file():
        raise UserError(f"start: '{root}' is not a run folder: it has no run.yaml")
    recipe = load_yaml(root / "run.yaml")
    theirs, adapters = recipe.get("entry"), (recipe.get("generator") or {}).get("lora")
    if theirs is None or build(GeneratorInput, theirs, str(root)) != run.entry:
        raise UserError(f"start: the generator of '{root}' has entry {theirs}, this recipe has {dump(run.entry)}")
    if (None if adapters is None else build(lora.Lora, adapters, str(root))) != run.generator.lora:
        ours = dump(run.generator)["lora"]
        raise UserError(f"start: the generator of '{root}' has lora {adapters}, this recipe has {ours}")
    source = folder if best else checkpoint.newest(root / "checkpoints")[0]
    if adapters is not None:  # which mean something on their teacher's weights alone
        description = json.loads((source / ("metrics.json" if best else "state.json")).read_text())
        if description["teacher"] != teacher_hash(run.teacher):
            raise UserError(f"start: the adapters of '{root}' are of another teacher than '{run.teacher}'")
    try:
        checkpoint.load_average(source, generator, frozen(generator))
    except RuntimeError as error:
        raise UserError(f"start: the generator in '{source}' is not of the teacher's architecture") from error


def load_teacher(run: Run, dataset: Dataset) -> Denoiser:
    """The teacher of `run` in its precision; raises UserError when it does not fit the data."""
    teacher = set_precision(load_denoiser(run.teacher), run)
    check_fit(teacher, run.teacher, dataset)
    if dataset.prompts is not None:
        teacher.network.null = {}  # type: ignore[assignment]  # there is one: `encode_dataset` embeds it
    return teacher


def check_objective(run: Run, dataset: Dataset, teacher: Denoiser) -> None:
    """Raise UserError when the objective or the adapters cannot train with this teacher and this data."""
    run.objective.check(teacher)
    sharding = run.sharding
    if sharding is not None and sharding.fake and sharding.reshard_after_forward and exact_slope(run.objective):
        raise UserError(
            "sharding.reshard_after_forward: must be false for r1 without noise, which differentiates the fake twice"
        )
    for settings in (run.generator, run.fake):
        if settings.lora is not None:
            lora.targets(teacher.network, settings.lora)
    if run.negative_prompt is not None and dataset.prompts is None:
        raise UserError(f"negative_prompt: {dataset.name} has no prompts; leave it out")
    if dataset.read is None:
        if "real" in run.objective.needs:
            raise UserError(
                f"objective: {type(run.objective).__name__} needs real images, data: {dataset.name} has none"
            )
        if run.evaluation.every:
            raise UserError(f"evaluation.every: needs real images, data: {dataset.name} has none; set it to 0")
    elif run.evaluation.every:
        check_images(dataset, teacher)


def exact_slope(objective: Objective) -> bool:
    """Whether some R1 in it differentiates twice."""
    values = [getattr(objective, field.name) for field in fields(objective)]
    return any(
        value.weight > 0 and not value.noise
        if isinstance(value, R1)
        else isinstance(value, Objective) and exact_slope(value)
        for value in values
    )


def check_fit(teacher: Denoiser, folder: str, dataset: Dataset) -> None:
    """Raise UserError when the teacher from `folder` makes other samples than the data set has, or under others."""
    network, takes_prompts = cast(Network, teacher.network), text_encoder(teacher) is not None
    if takes_prompts and dataset.prompts is None:
        raise UserError(f"data: {dataset.name} has no prompts, the teacher '{folder}' takes them")
    if dataset.prompts is not None and not takes_prompts:
        raise UserError(f"data: {dataset.name} has prompts, the teacher '{folder}' takes none")
    encoded = dataset.shape == UNKNOWN or (teacher.latents and dataset.read is not None)
    shape = network.shape if encoded else dataset.shape
    for what, theirs, ours in (("shape", shape, network.shape), ("classes", dataset.classes, network.classes)):
        if theirs != ours:
            raise UserError(f"data: {dataset.name} has {what} {theirs}, the teacher '{folder}' {what} {ours}")


def load_pairs(run: Run, teacher: Denoiser) -> PairSet | None:
    """The ODE pairs of `run`; raises UserError when they are incomplete or not of its teacher."""
    if run.pairs is None:
        return None
    folder, network = Path(run.pairs.folder), cast(Network, teacher.network)
    return open_pairs(folder, run.pairs_per_batch, teacher_hash(run.teacher), network.shape, network.classes)


def teacher_hash(folder: str) -> str:
    """SHA-256 over a teacher's description and network: its identity in checkpoints, which never hold it."""
    root = Path(folder)
    weights = [*root.glob("*.safetensors"), *(root / "unet").rglob("*")]
    files = [root / DESCRIPTION, *sorted(file for file in weights if file.is_file())]
    if not files[0].exists():
        files = denoiser_files(root)
    lines = [f"{file.relative_to(root)} {sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
