"""The comparison of student and teacher with the real images, under one named protocol."""

import hashlib
import json
import time
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NotRequired, cast

from accelerate import Accelerator
from pydantic import Field, with_config
from typing_extensions import TypedDict

from distill.denoiser import Denoiser, GuidableDenoiser
from distill.errors import UserError
from distill.generator import Generator
from distill.guidance import GuidedDenoiser
from distill.metrics import Protocol, content_hash
from distill.records import EXTENSIBLE, Count, read_record
from trainers.data import Dataset
from trainers.data.encode import DatasetEncoder
from trainers.engine.collectives import on_main_process
from trainers.engine.sampler import Sampler, make_image_sampler
from trainers.evaluation import check_images, evaluate, evaluation_data, fit_protocol
from trainers.hooks.log import duration
from trainers.io.atomic import atomic_file, sha256
from trainers.io.console import progress, tolerate_disk_errors
from trainers.io.teacher_hash import weights_hash
from trainers.recipe.measures import Evaluation
from trainers.recipe.strict_yaml import dump
from trainers.runs.draw import Drawable
from trainers.runs.trained_model import TrainedModel

Numbers = dict[str, Annotated[float, Field(allow_inf_nan=True)]]


@with_config(EXTENSIBLE)
class Comparison(TypedDict):
    """The content of evaluation.json."""

    protocol: str
    samples: Count
    images: Count
    average: str
    precision: NotRequired[str]
    halves: NotRequired[Annotated[float, Field(allow_inf_nan=True)]]
    teacher: NotRequired[Numbers]
    student: NotRequired[Numbers]
    ratio: NotRequired[Annotated[float, Field(allow_inf_nan=True)]]
    teacher_evaluations: NotRequired[Count]
    teacher_cfg: NotRequired[float]
    teacher_autoguidance: NotRequired[float]


class Measurable(Drawable, typing.Protocol):
    """The part of a trained model, and of a model without a run, that is measured."""

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser in the model."""

    @property
    def target(self) -> GuidableDenoiser | None:
        """The teacher as it is sampled. None without one."""

    @property
    def source(self) -> Dataset:
        """The data as they were opened."""


def compare(
    trained: Measurable, settings: Evaluation, student_only: bool = False, write: bool = True
) -> dict[str, Any]:
    """Compare student and teacher with the real images, and write evaluation.json. Collective.

    Both models get the same noise and labels. The teacher's numbers are kept in the cache, since they are those of
    every run with this teacher, protocol and seed.

    Args:
        trained: The trained model, or a model without a run.
        settings: The protocol.
        student_only: Whether to leave out the teacher.
        write: Whether to write evaluation.json.

    Returns:
        The content of evaluation.json, as `Trained.evaluate` describes it.
    """
    check_images(trained.source, trained.denoiser, settings)
    accelerator, shape = Accelerator(cpu=trained.device.type == "cpu"), trained.denoiser.image_shape
    protocol = fit_protocol(trained.source, settings, trained.run.cache, trained.device, shape)
    encoder = DatasetEncoder.of(trained.run, trained.device)
    reader = trained.denoiser if trained.teacher is None else trained.teacher
    dataset = evaluation_data(trained.source if settings.prompts else trained.dataset, settings, reader, encoder)
    report: dict[str, Any] = {"protocol": protocol.name, "samples": settings.count, "images": trained.images}
    report |= {"precision": trained.run.precision, "average": trained.average}
    if protocol.halves is not None:
        report["halves"] = protocol.halves
    if not student_only:
        report["teacher_evaluations"] = trained.run.sampler.calls
    if not student_only and isinstance(target := trained.target, GuidedDenoiser) and target.scale != 1:
        report["teacher_autoguidance" if isinstance(target.weak, Denoiser) else "teacher_cfg"] = target.scale

    def measure(name: str, sampler: Sampler) -> dict[str, float]:
        """Return the numbers of a model. Collective."""
        images = make_image_sampler(sampler, trained.model)
        with _progress_of(name, settings.count, quiet=not accelerator.is_main_process) as tell:
            found = evaluate(images, dataset, protocol, settings, trained.run.seed, accelerator, shape, tell)
        return {key: value for key, value in found.items() if isinstance(value, float)}

    if trained.teacher is None:
        name = "student" if isinstance(trained.model, Generator) else "teacher"
        report[name] = measure(name, trained.sampler)
    else:
        report["student"] = measure("student", trained.sampler)
        if not student_only:
            report["teacher"] = _teacher_numbers(
                cast(TrainedModel, trained), protocol, settings, measure, accelerator, trained.run.cache
            )
            if protocol.real is not None:
                report["ratio"] = report["student"]["frechet"] / report["teacher"]["frechet"]
    if write and accelerator.is_main_process:
        with atomic_file(trained.folder / "evaluation.json") as staging:
            staging.write_text(json.dumps(report, indent=2) + "\n")
    return report


@contextmanager
def _progress_of(name: str, count: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how many samples of a model are drawn, and shows that and the time that is left."""
    start = time.monotonic()
    with progress(quiet) as say:
        say(f"{name}: {count:,} samples")

        def tell(drawn: int) -> None:
            left = (time.monotonic() - start) * (count / drawn - 1)
            say(f"{name}: {drawn:,} of {count:,} samples, {duration(left)} left")

        yield tell


def _teacher_numbers(
    trained: TrainedModel,
    protocol: Protocol,
    settings: Evaluation,
    measure: Callable[[str, Sampler], dict[str, float]],
    accelerator: Accelerator,
    cache: str,
) -> dict[str, float]:
    """Return the numbers of the teacher, from the cache if they are there. Collective.

    Args:
        trained: The trained model.
        protocol: The protocol.
        settings: The number of samples, and the metrics.
        measure: (name, sampler) -> the numbers of a model.
        accelerator: Ranks and collectives.
        cache: The folder of the cache.
    """
    assert trained.teacher_sampler is not None
    digest, real = trained.source.digest, None
    if protocol.real is not None:
        real = content_hash({"mean": protocol.real.moments.mean, "covariance": protocol.real.moments.covariance})
    key = {
        "teacher": trained.weights.teacher_hash,
        "cfg": trained.target.scale if isinstance(trained.target, GuidedDenoiser) else 1,
        "sampler": dump(trained.run)["sampler"],
        **{name: weights_hash(other) for name, other in trained.guides.items()},
        "precision": trained.run.precision,
        "protocol": protocol.name,
        "real": real,
        "metrics": sorted(protocol.metrics),
        "samples": settings.count,
        "seed": trained.run.seed,
        "conditions": {name: digest.get(name) for name in ("count", "classes", "labels", "prompts")},
        "prompts": None if settings.prompts is None else sha256(Path(settings.prompts)),
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    file = Path(cache).expanduser() / "evaluations" / f"{name}.json"

    def load() -> dict[str, float] | None:
        """Return the numbers in the cache, or None if they are not there."""
        try:
            return cast(dict[str, float], read_record(file, Numbers, finite=False))
        except (FileNotFoundError, UserError):
            return None

    if (found := on_main_process(accelerator, load)) is not None:
        return found
    numbers = measure("teacher", trained.teacher_sampler)
    if accelerator.is_main_process:
        with tolerate_disk_errors(f"'{file}' is"):
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(file) as staging:
                staging.write_text(json.dumps(numbers) + "\n")
    return numbers
