"""The comparison of student and teacher with the real images, under one named protocol."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NotRequired

from accelerate import Accelerator
from pydantic import Field, with_config
from typing_extensions import TypedDict

from distill.guidance import GuidedDenoiser
from distill.records import EXTENSIBLE, Count
from trainers.engine.sampler import make_image_sampler
from trainers.evaluation import check_images, evaluate, fit_protocol
from trainers.io.atomic import atomic_file
from trainers.io.console import plain
from trainers.runs.trained_model import TrainedModel

Numbers = dict[str, Annotated[float, Field(allow_inf_nan=True)]]


@with_config(EXTENSIBLE)
class Comparison(TypedDict):
    """The content of evaluation.json."""

    protocol: str
    samples: Count
    images: Count
    average: str
    halves: Annotated[float, Field(allow_inf_nan=True)]
    teacher: Numbers
    student: NotRequired[Numbers]
    ratio: NotRequired[Annotated[float, Field(allow_inf_nan=True)]]
    teacher_cfg: NotRequired[float]


def compare(trained: TrainedModel, samples: int | None = None, classifier: str | Path | None = None) -> dict[str, Any]:
    """Compare student and teacher with the real images, and write evaluation.json. Collective.

    Both models get the same noise and labels. Arguments and result are those of `Trained.evaluate`.
    """
    run = trained.run
    settings = run.evaluation if classifier is None else replace(run.evaluation, classifier=str(classifier))
    check_images(trained.source, trained.denoiser)
    protocol = fit_protocol(trained.source, settings)
    count = samples or settings.samples
    accelerator = Accelerator(cpu=trained.device.type == "cpu")
    report: dict[str, Any] = {"protocol": protocol.name, "samples": count, "images": trained.images}
    report |= {"average": trained.average, "halves": protocol.halves}
    if isinstance(trained.target, GuidedDenoiser) and trained.target.scale != 1:
        report["teacher_cfg"] = trained.target.scale
    samplers = {"student": trained.sampler, "teacher": trained.teacher_sampler}
    if trained.teacher_sampler is None:
        samplers = {"teacher": trained.sampler}
    for name, sampler in samplers.items():
        assert sampler is not None
        with plain(stderr=True).status(f"{name}: {count:,} samples"):
            images = make_image_sampler(sampler, trained.model)
            shape = trained.source.shape
            numbers = evaluate(images, trained.dataset, protocol, count, run.seed, accelerator, shape)
        report[name] = {key: value for key, value in numbers.items() if isinstance(value, float)}
    if "student" in report:
        report["ratio"] = report["student"]["frechet"] / report["teacher"]["frechet"]
    if accelerator.is_main_process:
        with atomic_file(trained.folder / "evaluation.json") as staging:
            staging.write_text(json.dumps(report, indent=2) + "\n")
    return report
