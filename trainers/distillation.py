"""Builds the session of a distillation: teacher, fake and one-step generator."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator

from distill import lora
from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.generator import Generator
from distill.objectives import Denoisers
from distill.teachers import DESCRIPTION, Network, denoiser_files, load_denoiser
from trainers import checkpoint
from trainers.config import build, dump, load_yaml
from trainers.data import Dataset
from trainers.data.pairs import PairSet, open_pairs
from trainers.ema import EMA, power_averages
from trainers.files import sha256
from trainers.run import Entry, PlayerSettings, Run
from trainers.session import Session, configure, make_batches, sampler_of
from trainers.state import Player, TrainState
from trainers.step import distillation_step


def build_distillation(run: Run, accelerator: Accelerator, fresh: bool = True) -> Session:
    """Generator and fake start as copies of the teacher, which stays frozen and outside optimizer, EMA, checkpoint.

    A `fresh` run's generator, and with it the average, starts as `run.start` says.
    """
    dataset = run.data.load()
    teacher = load_teacher(run, dataset)
    check_objective(run, dataset, teacher)
    generator = one_step_generator(copy.deepcopy(teacher), run)
    if fresh and run.start is not None:
        load_start(run.start, run, generator)
    torch.manual_seed(run.seed)  # of the new weights of adapters and of a discriminator
    attach_adapters(generator.denoiser, run.generator)
    players = {"generator": Player("generator", generator.to(run.dtype), run.generator, accelerator)}
    fake: Callable[..., Any] = no_fake
    if run.objective.trains_fake:
        copied = copy.deepcopy(teacher)
        attach_adapters(copied, run.fake)
        fake = run.objective.build_fake(copied).to(run.dtype)
        players["fake"] = Player("fake", fake, run.fake, accelerator)
    if run.precision == "bfloat16":
        for parameter in teacher.network.parameters():  # frozen, so it is stored in the compute precision
            parameter.data = parameter.data.bfloat16()  # but not the buffers: frequencies of Fourier features
    teacher.to(accelerator.device).requires_grad_(False).eval()
    frozen = run.objective.load_frozen()
    for network in frozen.values():
        network.to(accelerator.device, run.dtype).requires_grad_(False).eval()
    memory = {name: value.to(accelerator.device) for name, value in run.objective.new_memory().items()}
    batches = make_batches(run, dataset, "real" in run.objective.needs, accelerator, load_pairs(run, dataset))
    state = TrainState(players, EMA(generator, run.ema), power_averages(generator, run.power_ema), memory=memory)
    nets = Denoisers(teacher.path, teacher, fake, frozen, memory)
    step = partial(distillation_step, run, state, nets, batches, accelerator)
    product = state.ema.module
    identity = teacher_hash(run.teacher)
    return Session(
        run, accelerator, dataset, batches, state, step, product, sampler_of(product, run), teacher, identity
    )


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
    root = folder.parent if folder.name == "best" else folder
    if not (root / "run.yaml").is_file():
        raise UserError(f"start: '{root}' is not a run folder: it has no run.yaml")
    theirs = load_yaml(root / "run.yaml").get("entry")
    if theirs is None or build(Entry, theirs, str(root)) != run.entry:
        raise UserError(f"start: the generator of '{root}' has entry {theirs}, this recipe has {dump(run.entry)}")
    source = folder if folder.name == "best" else checkpoint.newest(root / "checkpoints")[0]
    try:
        checkpoint.load_average(source, generator)
    except RuntimeError as error:
        raise UserError(f"start: the generator in '{source}' is not of the teacher's architecture") from error


def load_teacher(run: Run, dataset: Dataset) -> Denoiser:
    """The teacher of `run` in its precision; raises UserError when it does not fit the data."""
    teacher = configure(load_denoiser(run.teacher), run)
    check_fit(teacher, run.teacher, dataset)
    return teacher


def check_objective(run: Run, dataset: Dataset, teacher: Denoiser) -> None:
    """Raise UserError when the objective or the adapters cannot train with this teacher and this data."""
    run.objective.check(teacher)
    for settings in (run.generator, run.fake):
        if settings.lora is not None:
            lora.targets(teacher.network, settings.lora)
    if dataset.read is None:
        if "real" in run.objective.needs:
            raise UserError(
                f"objective: {type(run.objective).__name__} needs real images, data: {dataset.name} has none"
            )
        if run.evaluation.every:
            raise UserError(f"evaluation.every: needs real images, data: {dataset.name} has none; set it to 0")


def check_fit(teacher: Denoiser, folder: str, dataset: Dataset) -> None:
    """Raise UserError when the teacher from `folder` makes other samples than the data set has."""
    network = cast(Network, teacher.network)
    for what, theirs, ours in (("shape", dataset.shape, network.shape), ("classes", dataset.classes, network.classes)):
        if theirs != ours:
            raise UserError(f"data: {dataset.name} has {what} {theirs}, the teacher '{folder}' {what} {ours}")


def load_pairs(run: Run, dataset: Dataset) -> PairSet | None:
    """The ODE pairs of `run`; raises UserError when they are incomplete or not of its teacher."""
    if run.pairs is None:
        return None
    shape, classes = dataset.shape, dataset.classes  # the teacher's, as check_fit says
    return open_pairs(Path(run.pairs.folder), run.pairs_per_batch, teacher_hash(run.teacher), shape, classes)


def teacher_hash(folder: str) -> str:
    """SHA-256 over a teacher's description and network: its identity in checkpoints, which never hold it."""
    root = Path(folder)
    weights = [*root.glob("*.safetensors"), *(root / "unet").rglob("*")]
    files = [root / DESCRIPTION, *sorted(file for file in weights if file.is_file())]
    if not files[0].exists():
        files = denoiser_files(root)
    lines = [f"{file.relative_to(root)} {sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
