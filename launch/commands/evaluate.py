"""distill evaluate: student, teacher, their ratio, and the real-against-real floor, under one named protocol."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from trainers.engine.session import make_image_sampler
from trainers.evaluation import check_images, fit_protocol
from trainers.evaluation import evaluate as evaluate_samples
from trainers.io.images import denoiser_of
from trainers.runs.load import Trained, load_trained

WhichOption = Annotated[
    str, typer.Option(help="last (checkpoint), best (by Frechet distance), or posthoc/NAME of `distill ema`")
]


def evaluate(
    folder: Annotated[Path, typer.Argument(help="run folder")],
    which: WhichOption = "last",
    samples: Annotated[
        int | None, typer.Option(help="samples of each model; the recipe's when left out", min=2)
    ] = None,
    classifier: Annotated[
        Path | None, typer.Option(help="measure in the features of this classifier; the recipe's when left out")
    ] = None,
) -> None:
    """Print the distances of student and teacher to the real images, and write them to evaluation.json."""
    report = measure(load_trained(folder, which), samples, classifier)
    (folder / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n")
    Console().print(table(report))


def measure(product: Trained, samples: int | None = None, classifier: Path | None = None) -> dict[str, Any]:
    """Both models on the same noise and labels: protocol, samples, images, average, halves, student, teacher, ratio."""
    run = product.run
    settings = run.evaluation if classifier is None else replace(run.evaluation, classifier=str(classifier))
    check_images(product.source, denoiser_of(product.model))
    protocol = fit_protocol(product.source, settings)
    count = samples or settings.samples
    accelerator = Accelerator(cpu=product.device.type == "cpu")
    report: dict[str, Any] = {"protocol": protocol.name, "samples": count, "images": product.images}
    report |= {"average": product.average, "halves": protocol.halves}
    models = {"student": product.sampler, "teacher": product.teacher_sampler}
    if product.teacher_sampler is None:
        models = {"teacher": product.sampler}
    for name, sampler in models.items():
        assert sampler is not None
        with Console(stderr=True).status(f"{name}: {count:,} samples"):
            viewer = make_image_sampler(sampler, product.model)
            numbers = evaluate_samples(
                viewer, product.dataset, protocol, count, run.seed, accelerator, product.source.shape
            )
        report[name] = {key: value for key, value in numbers.items() if isinstance(value, float)}
    if "student" in report:
        report["ratio"] = report["student"]["frechet"] / report["teacher"]["frechet"]
    return report


def table(report: dict[str, Any]) -> Table:
    """The report as it is printed."""
    rich_table = Table(title=f"Frechet distance in {report['protocol']}, {report['samples']:,} samples each")
    for column in ("", "evaluations", "distance", "/ teacher", "/ halves", "agreement"):
        rich_table.add_column(column, justify="left" if column == "" else "right", no_wrap=True)
    for name, evaluations in (("student", "1"), ("teacher", "35")):
        if name in report:
            numbers, teacher = report[name], report["teacher"]["frechet"]
            distance = numbers["frechet"]
            agreement = f"{numbers['label_agreement']:.2%}" if "label_agreement" in numbers else ""
            ratios = f"{distance / teacher:.2f}", f"{distance / report['halves']:.2f}"
            rich_table.add_row(name, evaluations, f"{distance:.4f}", *ratios, agreement)
    halves = report["halves"]
    rich_table.add_row("real halves", "", f"{halves:.4f}", f"{halves / report['teacher']['frechet']:.2f}", "1.00", "")
    return rich_table
