"""The opening of a run: all that its recipe names is opened and checked, once.

A launcher opens a run without weights. Each worker then opens it once, with weights. Every mistake of the user that can
be known before training raises UserError here.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from distill import lora
from distill.denoiser import Denoiser
from distill.discriminator import R1
from distill.errors import UserError
from distill.generator import Generator
from distill.networks.network import Network
from distill.objectives import Objective, usual_times
from distill.teachers import fresh_network, load_denoiser
from distill.times import LogNormal
from trainers.data import Dataset
from trainers.data.buckets import Buckets
from trainers.data.dataset import UNKNOWN
from trainers.data.encode import DatasetEncoder
from trainers.data.pairs import PairSet, open_pairs, read_description
from trainers.engine.networks import set_precision
from trainers.engine.player import OptimizerFactory
from trainers.engine.sampler import WEAK_TEACHER
from trainers.engine.world import default_device
from trainers.evaluation import check_evaluation, check_images, load_extractor
from trainers.hooks.hook import Hook
from trainers.hooks.trackers import check_trackers
from trainers.recipe.run import Run
from trainers.recipe.strict_yaml import differences, dump
from trainers.recipe.teacher_run import TeacherRun
from trainers.runs.start import check_start


@dataclass(frozen=True)
class Objects:
    """Python objects of the caller that replace names in the recipe.

    run.yaml cannot hold them. It lists their names under `objects`, and a resume needs the same objects again.

    Attributes:
        teacher: The teacher.
        data: The data set.
        hooks: Hooks that are called beside those of every run.
        optimizer: Makes the optimizers of the players.
    """

    teacher: Denoiser | None = None
    data: Dataset | None = None
    hooks: Sequence[Hook] = ()
    optimizer: OptimizerFactory | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the objects that are given."""
        return tuple(one.name for one in fields(self) if getattr(self, one.name))

    def copy_teacher(self) -> Denoiser | None:
        """Return a copy of the given teacher, or None if there is none.

        It is copied since a run changes its teacher in place. If all its parameters are frozen, those of the copy
        become trainable, since generator and fake start as copies that train.
        """
        teacher = copy.deepcopy(self.teacher)
        if teacher is not None and not any(parameter.requires_grad for parameter in teacher.parameters()):
            teacher.requires_grad_()
        return teacher


@dataclass(frozen=True)
class Opened:
    """A run with all that its recipe names, opened and checked.

    Attributes:
        run: The recipe.
        source: The data as they were opened: pixels, prompts.
        teacher: The teacher in the precision of the run: that which is distilled, or fine-tuned. None for a fresh one.
        further_teachers: The objective's further teachers, by name.
        pairs: The ODE pairs. None if the objective needs none.
        fresh: Whether the run begins. Otherwise it continues from a checkpoint, which is not loaded yet.
        objects: The objects of the caller.
        told: Lines about keys of the recipe that follow from the teacher.
    """

    run: Run | TeacherRun
    source: Dataset
    teacher: Denoiser | None = None
    further_teachers: Mapping[str, Denoiser] = field(default_factory=dict)
    pairs: PairSet | None = None
    fresh: bool = True
    objects: Objects = Objects()
    told: Sequence[str] = ()


def open_run(
    run: Run | TeacherRun, processes: int, weights: bool = True, fresh: bool = True, objects: Objects = Objects()
) -> Opened:
    """Open and check all that a recipe names.

    Args:
        run: The recipe.
        processes: The number of processes of the run.
        weights: Whether to read weights. Without them the networks are on the meta device.
        fresh: Whether the run begins. A run that continues does not need the run that it started from.
        objects: The objects of the caller.

    Raises:
        UserError: Something is missing or damaged, or does not go with the rest.
    """
    run.check_world(processes)
    check_trackers(run)
    if missing := set(run.objects) - set(objects.names) - {"objective"}:  # an objective was imported with the recipe
        raise UserError(
            f"'{run.name}' was started from Python with objects of its own; resume it there with"
            f" trainers.resume(folder, {', '.join(f'{name}=...' for name in sorted(missing))})"
        )
    source = objects.data or run.data.load()
    load_extractor(source, run.evaluation)
    if isinstance(run, TeacherRun):
        return open_teacher_run(Opened(run, source, fresh=fresh, objects=objects), weights)
    teacher = set_precision(objects.copy_teacher() or load_denoiser(run.teacher, weights), run)
    check_fit(teacher, run.teacher, source)
    run, told = follow_teacher(run, teacher)
    further = {name: load_denoiser(folder, weights) for name, folder in run.objective.further_teachers().items()}
    check_objective(run, source, teacher, further)
    check_sampler(run, teacher)
    if run.sampler.guidance is not None and run.sampler.guidance.weak_teacher is not None:
        further[WEAK_TEACHER] = load_denoiser(run.sampler.guidance.weak_teacher, weights)
        run.sampler.guidance.check_weak(further[WEAK_TEACHER], teacher)
    generator = Generator(teacher, *run.entry.at(teacher.path))
    if fresh and run.start is not None:
        check_start(run.start, run, generator)
    pairs = None
    if run.pairs is not None:
        if isinstance(source, Buckets):
            raise UserError("pairs: are of one size; leave data.buckets out")
        pairs = open_pairs(Path(run.pairs.folder), teacher.network.shape, teacher.network.classes)
        check_guidance_of_pairs(run, teacher)
    return Opened(run, source, teacher, further, pairs, fresh, objects, told)


def open_teacher_run(opened: Opened, weights: bool) -> Opened:
    """Return the run of a teacher's training, with the network checked, and opened where it is fine-tuned.

    Args:
        opened: The run and its data.
        weights: Whether to read weights.

    Raises:
        UserError: The network does not go with the recipe or the data.
    """
    run, source = cast(TeacherRun, opened.run), opened.source
    if source.read is None:
        raise UserError(f"data: a teacher is trained on real images, {source.name} has none")
    if run.label_dropout and not source.classes and source.prompts is None:
        raise UserError(f"label_dropout: {source.name} has no labels to drop; set it to 0")
    if run.start is not None:
        teacher = set_precision(load_denoiser(run.start, weights), run)
        check_fit(teacher, run.start, source)
        times = run.times or (None if teacher.prediction == "edm" else usual_times(teacher.path)) or LogNormal()
        times.check(teacher.path)
        weight = run.weight or ("eps" if teacher.prediction == "score" else teacher.prediction)
        followed = replace(run, times=times, weight=weight)
        laws = [f"{name}: {_in_words(dump(followed)[name])}" for name in ("times", "weight") if not getattr(run, name)]
        told = [f"left out, and taken from the teacher's kind: {', '.join(laws)}"] if laws else []
        opened = replace(opened, run=followed, teacher=teacher, told=told)
    else:
        if source.prompts is not None:
            raise UserError(
                f"data: {source.name} has prompts, and a fresh network takes labels or none; start names one that does"
            )
        null = run.label_dropout > 0
        with torch.device("meta"):  # a check of the config; the network itself is made when it trains
            network = fresh_network(cast(dict[str, Any], run.network), source.shape, source.classes, null)
        if isinstance(source, Buckets):
            check_sizes(network, source)
        teacher = Denoiser(network, cast(Any, run.path), cast(Any, run.prediction))
    check_teacher_run(cast(TeacherRun, opened.run), source, teacher)
    return opened


def check_teacher_run(run: TeacherRun, source: Dataset, teacher: Denoiser) -> None:
    """Raise UserError when a network cannot be trained or sampled as the recipe says."""
    if run.label_dropout and not teacher.network.has_null:
        raise UserError("label_dropout: the network of start has no null condition; set it to 0")
    if run.negative_prompt is not None and source.prompts is None:
        raise UserError(f"negative_prompt: {source.name} has no prompts; leave it out")
    if run.augmentation is not None:
        run.augmentation.check(teacher)
    if run.lora is not None:
        lora.targets(teacher.network, run.lora)
    if run.uncertainty and not teacher.network.predicts_uncertainty:
        raise UserError(
            f"uncertainty: {teacher.network.display_name} predicts none, as EDM2's networks do; leave it out"
        )
    run.sampler.check(teacher.path)
    if (guidance := run.sampler.guidance) is not None and guidance.weak_teacher is not None:
        raise UserError("sampler.guidance.weak_teacher: a teacher that trains is sampled without one; take cfg")
    if guidance is not None and guidance.cfg != 1 and not teacher.network.has_null:
        raise UserError("sampler.guidance.cfg: needs a null condition; set label_dropout, or leave guidance out")
    if run.evaluation.every and teacher.latents:
        check_images(source, teacher, run.evaluation)
    if 0 < run.evaluation.every <= run.images:
        check_evaluation(source, run.evaluation, teacher.image_shape)


def follow_teacher(run: Run, teacher: Denoiser) -> tuple[Run, list[str]]:
    """Return a recipe whose objective follows from the teacher where keys were left out, and a line about these keys.

    There is no line where EDM's own defaults stay, which the papers have.
    """
    followed = replace(run, objective=run.objective.following(teacher))
    changed = [key for key, (_, new) in differences(dump(run), dump(followed)).items() if new != "edm"]
    laws = _laws(dump(followed)["objective"])
    told = [f"{key}: {value}" for key, value in laws if any(one.startswith(key) for one in changed)]
    advice = "`distill probe` measures better ones"
    return followed, [f"left out, and taken from the teacher's kind: {', '.join(told)}; {advice}"] if told else []


def _laws(settings: Mapping[str, Any], group: str = "objective") -> Iterator[tuple[str, str]]:
    """Yield the key and the value, in words, of each law and weight of an objective, and of the one inside it."""
    for name in ("times", "fake_times", "fake_weight"):
        yield f"{group}.{name}", _in_words(settings.get(name))
    if isinstance(inner := settings.get("objective"), Mapping):
        yield from _laws(inner, f"{group}.objective")


def _in_words(value: Any) -> str:
    """Return the value of a key in words: a group by its name and its settings."""
    if not isinstance(value, Mapping):
        return str(value)
    return " ".join(str(one) if key == "name" else f"{key} {one}" for key, one in value.items())


def encode_data(opened: Opened, device: torch.device | None = None, quiet: bool = False) -> Dataset:
    """Return the data of a run as its teacher takes them, through the cache. Ranks divide the work.

    Args:
        opened: The run.
        device: The device of the encoders. None for the default.
        quiet: Whether to print no progress.
    """
    run, teacher = opened.run, opened.teacher
    assert teacher is not None, "a fresh network is trained on the data as they are"
    encoder = DatasetEncoder.of(run, device or default_device(), quiet)
    return encoder.encode(opened.source, teacher, real=isinstance(run, TeacherRun) or "real" in run.objective.needs)


def check_fit(teacher: Denoiser, name: str, dataset: Dataset) -> None:
    """Raise UserError when a teacher does not fit the data: in the shape of samples, in classes, or in prompts.

    Args:
        teacher: The teacher.
        name: Its name in messages.
        dataset: The data as they were opened.
    """
    network = teacher.network
    takes_prompts = network.text_encoder is not None
    if takes_prompts and dataset.prompts is None:
        raise UserError(f"data: {dataset.name} has no prompts, the teacher '{name}' takes them")
    if dataset.prompts is not None and not takes_prompts:
        raise UserError(f"data: {dataset.name} has prompts, the teacher '{name}' takes none")
    encoded = dataset.shape == UNKNOWN or (bool(teacher.latents) and dataset.read is not None)
    shape = network.shape if encoded else dataset.shape
    for what, theirs, ours in (("shape", shape, network.shape), ("classes", dataset.classes, network.classes)):
        if theirs != ours:
            raise UserError(f"data: {dataset.name} has {what} {theirs}, the teacher '{name}' {what} {ours}")
    if isinstance(dataset, Buckets):
        check_sizes(network, dataset)


def check_sizes(network: Network, dataset: Buckets) -> None:
    """Raise UserError when a network does not take the sizes of the buckets, or is used at another than the first."""
    try:
        shapes = [network.shape_at(*shape[1:]) for shape in (dataset.shape, *(part.shape for part in dataset.parts))]
    except UserError as error:
        raise UserError(f"data.buckets: {error}") from error
    if shapes[0] != network.shape:
        raise UserError(f"data.resolution: makes samples of shape {shapes[0]}, the teacher's are {network.shape}")


def check_objective(run: Run, dataset: Dataset, teacher: Denoiser, further: Mapping[str, Denoiser]) -> None:
    """Raise UserError when the objective or the adapters cannot train with this teacher and these data."""
    run.objective.check(teacher)
    if run.augmentation is not None:
        run.augmentation.check(teacher)
    for name, other in further.items():
        run.objective.check_further_teacher(name, other, teacher)
    sharding = run.sharding
    if sharding is not None and sharding.fake and sharding.reshard_after_forward and has_exact_slope(run.objective):
        raise UserError(
            "sharding.reshard_after_forward: must be false for r1 without noise, which differentiates the fake twice"
        )
    for name, player in (("generator", run.generator), ("fake", run.fake)):
        if isinstance(player.dropout, float) and not any(isinstance(m, nn.Dropout) for m in teacher.network.modules()):
            raise UserError(f"{name}.dropout: {teacher.network.display_name} has no dropout layer; set it to off")
    for settings in (run.generator, run.fake):
        if settings.lora is not None:
            lora.targets(teacher.network, settings.lora)
    if run.negative_prompt is not None and dataset.prompts is None:
        raise UserError(f"negative_prompt: {dataset.name} has no prompts; leave it out")
    if "texts" in run.objective.needs and dataset.prompts is None:
        raise UserError(f"objective: {type(run.objective).__name__} reads prompts, data: {dataset.name} has none")
    if dataset.read is None and "real" in run.objective.needs:
        raise UserError(f"objective: {type(run.objective).__name__} needs real images, data: {dataset.name} has none")
    if run.evaluation.every:
        check_images(dataset, teacher, run.evaluation)
    if 0 < run.evaluation.every <= run.images:
        check_evaluation(dataset, run.evaluation, teacher.image_shape)


def check_guidance_of_pairs(run: Run, teacher: Denoiser) -> None:
    """Raise UserError when the pairs of a run are guided otherwise than the teacher that its objective follows.

    An objective that regresses alone, and is not guided, takes the pairs as they are.
    """
    assert run.pairs is not None
    made = read_description(folder := Path(run.pairs.folder))
    guidance = (made.get("sampler") or {}).get("guidance") or {"cfg": made["teacher_cfg"]}
    target = run.objective.target(teacher)
    ours, theirs = getattr(target, "scale", 1.0), float(guidance["cfg"])
    if ours != theirs and (run.objective.trains_fake or ours != 1):
        raise UserError(
            f"pairs: '{folder}' is of a teacher guided at {theirs:g}, the objective's at {ours:g};"
            f" make pairs with --teacher-cfg {ours:g}"
        )


def check_sampler(run: Run, teacher: Denoiser) -> None:
    """Raise UserError when the recipe's sampler cannot sample a teacher."""
    run.sampler.check(teacher.path)
    run.sampler.check_shape(teacher.network.shape)
    if run.sampler.guidance is not None:
        run.sampler.guidance.check(teacher)


def has_exact_slope(objective: Objective) -> bool:
    """Return whether an R1 penalty in the objective differentiates the fake twice."""
    values: Iterable[Any] = (getattr(objective, one.name) for one in fields(objective))
    return any(
        value.weight > 0 and not value.noise
        if isinstance(value, R1)
        else isinstance(value, Objective) and has_exact_slope(value)
        for value in values
    )
