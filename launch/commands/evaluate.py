"""distill evaluate: student, teacher and real images under one named protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.options import (
    Cfg,
    CfgInterval,
    CfgRescale,
    Evaluations,
    SamplerName,
    Which,
    cache_folder,
    with_environment,
)

if TYPE_CHECKING:
    from rich.table import Table

LABELS = {
    "inception_score": "IS",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "clip_score": "CLIP",
    "pick_score": "PickScore",
    "hps": "HPS",
    "image_reward": "ImageReward",
    "aesthetic": "aesthetic",
}
"""The columns of the metrics that not every protocol has."""


def evaluate(
    folders: Annotated[
        list[str],
        typer.Argument(
            help="Folders of runs, teachers and safetensors exports, or ids of pipelines on the hub. Then other values"
            " of their settings, such as data.path=FOLDER or precision=bfloat16."
        ),
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
    data: Annotated[
        str | None, typer.Option(help="For a model without a run: pictures by their path, or as in a recipe.")
    ] = None,
    sampler: SamplerName = None,
    evaluations: Evaluations = None,
    cfg: Cfg = None,
    cfg_interval: CfgInterval = None,
    cfg_rescale: CfgRescale = None,
    plot: Annotated[Path | None, typer.Option(help="A picture of the distances of all folders to write.")] = None,
) -> None:
    """Print the Frechet distances of student and teacher to the real images.

    Those of a run are written to its evaluation.json.
    """
    from rich.console import Console

    from trainers.recipe.strict_yaml import override
    from trainers.runs.bare_model import BareModel, SamplerWords, open_model, set_sampler
    from trainers.runs.plots import distances

    changes = override({}, [one for one in folders if "=" in one])
    words, reports = SamplerWords(sampler, evaluations, cfg, cfg_interval, cfg_rescale), {}
    for folder in (one for one in folders if "=" not in one):
        opened = open_model(folder, which, changes)
        set_sampler(opened, words, teacher=opened.teacher is not None, cache=cache_folder())
        opened.run = with_environment(opened.run)
        if isinstance(opened, BareModel):
            opened.data = data
        reports[folder] = opened.evaluate(
            samples, student_only, classifier=classifier, protocol=protocol, reference=reference
        )
        Console().print(table(reports[folder], folder if len(folders) > 1 else ""))
    if plot is not None:
        distances(reports, plot)
        Console().print(str(plot))


def table(report: dict[str, Any], name: str = "") -> Table:
    """Return a report as a table.

    Args:
        report: The content of evaluation.json.
        name: The name of the run in the title.
    """
    from rich.markup import escape
    from rich.table import Table

    guided = f", teacher guided at {report['teacher_cfg']:g}" if "teacher_cfg" in report else ""
    if "teacher_autoguidance" in report:
        guided = f", teacher guided at {report['teacher_autoguidance']:g} by a weaker one"
    guided += "" if report.get("precision", "float32") == "float32" else f", in {report['precision']}"
    distances = any("frechet" in report.get(model, {}) for model in ("student", "teacher"))
    title = f"{report['protocol']}, {report['samples']:,} samples each{guided}"
    title = f"Frechet distance in {title}" if distances else title
    found = Table(title=escape(f"{name}: {title}" if name else title))  # data and files may have names like [/x]
    rows = {key: report[key] for key in ("student", "teacher") if key in report}
    more = [key for key in LABELS if any(key in numbers for numbers in rows.values())]
    agreement = any("label_agreement" in numbers for numbers in rows.values())
    teacher, halves = report.get("teacher", {}).get("frechet"), report.get("halves")
    columns = ["", "evaluations", *["distance"] * distances]
    columns += ["/ teacher"] * (teacher is not None) + ["/ halves"] * (halves is not None)
    for column in [*columns, *(LABELS[key] for key in more), *["agreement"] * agreement]:
        found.add_column(column, justify="left" if column == "" else "right", no_wrap=True)

    def ratios(distance: float) -> list[str]:
        return [f"{distance / base:.2f}" for base in (teacher, halves) if base is not None]

    for model, numbers in rows.items():
        calls = 1 if model == "student" else report.get("teacher_evaluations", 35)
        cells = [model, str(calls)]
        if distances:
            cells += [f"{numbers['frechet']:.4f}", *ratios(numbers["frechet"])]
        cells += [f"{numbers[key]:.4g}" for key in more]
        cells += [f"{numbers['label_agreement']:.2%}"] if agreement else []
        found.add_row(*cells)
    if halves is not None:
        found.add_row("real halves", "", f"{halves:.4f}", *ratios(halves))
    return found
