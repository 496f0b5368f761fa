"""distill evaluate: student, teacher and real images under one named protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.options import Moved, Which

if TYPE_CHECKING:
    from rich.table import Table


def evaluate(
    folder: Annotated[Path, typer.Argument(help="The run folder.")],
    moved: Moved = None,
    which: Which = "last",
    samples: Annotated[
        int | None, typer.Option(help="The number of samples of each model. Default: the recipe's.", min=2)
    ] = None,
    classifier: Annotated[
        Path | None, typer.Option(help="The classifier whose features are measured. Default: the recipe's.")
    ] = None,
) -> None:
    """Print the Frechet distances of student and teacher to the real images, and write them to evaluation.json."""
    from rich.console import Console

    from trainers.recipe.strict_yaml import override
    from trainers.runs.load import load_trained

    trained = load_trained(folder, which, changes=override({}, moved or []))
    Console().print(table(trained.evaluate(samples, classifier)))


def table(report: dict[str, Any]) -> Table:
    """Return a report as a table.

    Args:
        report: The content of evaluation.json.
    """
    from rich.table import Table

    guided = f", teacher guided at {report['teacher_cfg']:g}" if "teacher_cfg" in report else ""
    found = Table(title=f"Frechet distance in {report['protocol']}, {report['samples']:,} samples each{guided}")
    for column in ("", "evaluations", "distance", "/ teacher", "/ halves", "agreement"):
        found.add_column(column, justify="left" if column == "" else "right", no_wrap=True)
    for name, evaluations in (("student", "1"), ("teacher", "35")):
        if name in report:
            numbers, teacher = report[name], report["teacher"]["frechet"]
            distance = numbers["frechet"]
            agreement = f"{numbers['label_agreement']:.2%}" if "label_agreement" in numbers else ""
            ratios = f"{distance / teacher:.2f}", f"{distance / report['halves']:.2f}"
            found.add_row(name, evaluations, f"{distance:.4f}", *ratios, agreement)
    halves = report["halves"]
    found.add_row("real halves", "", f"{halves:.4f}", f"{halves / report['teacher']['frechet']:.2f}", "1.00", "")
    return found
