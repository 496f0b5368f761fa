"""distill evaluate: student, teacher and real images under one named protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.options import Which, inception_weights

if TYPE_CHECKING:
    from rich.table import Table

LABELS = {"inception_score": "IS", "kid": "KID", "precision": "precision", "recall": "recall"}
"""The columns of the metrics that not every protocol has."""


def evaluate(
    folders: Annotated[
        list[str], typer.Argument(help="Run folders. Then where teacher and data are now, such as data.path=FOLDER.")
    ],
    which: Which = "last",
    samples: Annotated[
        int | None, typer.Option(help="The number of samples of each model. Default: the recipe's.", min=2)
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="A published protocol, such as fid50k. Default: the recipe's.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Statistics of real images: .npz, .pkl or .safetensors. Default: of the data.")
    ] = None,
    classifier: Annotated[
        Path | None, typer.Option(help="The classifier whose features are measured. Default: the recipe's.")
    ] = None,
    student_only: Annotated[bool, typer.Option("--student-only", help="Leave out the teacher.")] = False,
    plot: Annotated[Path | None, typer.Option(help="A picture of the distances of all folders to write.")] = None,
) -> None:
    """Print the Frechet distances of student and teacher to the real images, and write them to evaluation.json."""
    from rich.console import Console

    from distill.errors import UserError
    from trainers.recipe.strict_yaml import override
    from trainers.runs.load import load_trained
    from trainers.runs.plots import distances

    changes = override({}, [one for one in folders if "=" in one])
    reports = {}
    for folder in (one for one in folders if "=" not in one):
        trained = load_trained(folder, which, changes=changes)
        trained.run = inception_weights(trained.run)
        reports[folder] = trained.evaluate(samples, classifier, protocol, reference, student_only)
        Console().print(table(reports[folder], folder if len(folders) > 1 else ""))
    kinds = {(report["protocol"], report["samples"]) for report in reports.values()}
    if plot is not None and len(kinds) > 1:
        raise UserError("--plot: the folders were measured under different protocols, which do not compare")
    if plot is not None:
        distances(reports, plot)
        Console().print(str(plot))


def table(report: dict[str, Any], name: str = "") -> Table:
    """Return a report as a table.

    Args:
        report: The content of evaluation.json.
        name: The name of the run in the title.
    """
    from rich.table import Table

    guided = f", teacher guided at {report['teacher_cfg']:g}" if "teacher_cfg" in report else ""
    title = f"Frechet distance in {report['protocol']}, {report['samples']:,} samples each{guided}"
    found = Table(title=f"{name}: {title}" if name else title)
    rows = {key: report[key] for key in ("student", "teacher") if key in report}
    more = [key for key in LABELS if any(key in numbers for numbers in rows.values())]
    agreement = any("label_agreement" in numbers for numbers in rows.values())
    teacher, halves = report.get("teacher", {}).get("frechet"), report.get("halves")
    columns = ["", "evaluations", "distance"]
    columns += ["/ teacher"] * (teacher is not None) + ["/ halves"] * (halves is not None)
    for column in [*columns, *(LABELS[key] for key in more), *["agreement"] * agreement]:
        found.add_column(column, justify="left" if column == "" else "right", no_wrap=True)

    def ratios(distance: float) -> list[str]:
        return [f"{distance / base:.2f}" for base in (teacher, halves) if base is not None]

    for model, numbers in rows.items():
        distance = numbers["frechet"]
        cells = [
            model,
            "1" if model == "student" else str(report.get("teacher_evaluations", 35)),
            f"{distance:.4f}",
            *ratios(distance),
        ]
        cells += [f"{numbers[key]:.4g}" for key in more]
        found.add_row(*cells, *[f"{numbers['label_agreement']:.2%}"] * agreement)
    if halves is not None:
        found.add_row("real halves", "", f"{halves:.4f}", *ratios(halves))
    return found
