"""The recipes that `distill probe` writes for a teacher, trained unchanged, as a page with a table and a picture.

    python -m benchmarks.probed TEACHER --data PICTURES --classifier FOLDER --cfg 1 --cfg 2

A call that was interrupted continues where it stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import trainers
from benchmarks.objectives import CLASSES, MEASURED, picture, standard_cells, standard_table, strip
from distill.user_code import trusting
from trainers.api import finish
from trainers.io import jsonl
from trainers.io.console import plain
from trainers.probe import probe
from trainers.probe.rules import OBJECTIVES
from trainers.probe.starting import starting_recipe
from trainers.recipe.load import resolve
from trainers.recipe.run import Run


def main(
    teacher: Annotated[Path, typer.Argument(help="The teacher's folder.")],
    data: Annotated[str, typer.Option(help="Pictures by their path, or the data as in a recipe.")],
    classifier: Annotated[Path | None, typer.Option(help="The classifier whose features are measured.")] = None,
    cfg: Annotated[list[float] | None, typer.Option(help="Scales of guidance.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="These objectives alone. Default: all with rules.")] = None,
    minutes: Annotated[float, typer.Option(help="The minutes of each probe.")] = 8,
    run_minutes: Annotated[float, typer.Option(help="The minutes of each run.")] = 30,
    out: Annotated[Path, typer.Option(help="The folder of the page and the picture.")] = Path("docs/results"),
    trust_code: Annotated[bool, typer.Option(help="Whether the code of the teacher's class may run.")] = False,
) -> None:
    """Probe, train, measure, and write page and picture."""
    console, rows, pictures = plain(), [], []
    name = teacher.resolve().name
    with trusting(trust_code):
        for scale in cfg or [1.0]:
            for objective in only or OBJECTIVES:
                start = starting_recipe(teacher, data, objective, scale, classifier)
                title = f"{start.name}_cfg{scale:g}"
                folder = Path("probes") / title
                if not (folder / "recipe.yaml").exists():
                    probe(start, folder, minutes, run_minutes, console.print)
                run = resolve(folder / "recipe.yaml", [f"name={title}"])
                assert isinstance(run, Run)
                trained = trainers.load(finish(run, Path("runs"), console), trust_code=trust_code, evaluation=MEASURED)
                rows.append(row(objective, scale, run, trained.evaluate(), trained.folder))
                console.print(rows[-1])
                pictures.append((f"{objective}, cfg {scale:g}", strip(trained.sample(2 * CLASSES))))
            pictures.append((f"teacher, cfg {scale:g}", strip(trained.sample(2 * CLASSES, teacher=True))))
    out.mkdir(parents=True, exist_ok=True)
    picture(pictures, out / f"probed_{name}.png")
    notes = out / f"probed_{name}_notes.md"  # remarks that are written by hand, and that the page ends with
    text = page(name, rows) + (notes.read_text() if notes.exists() else "")
    (out / f"probed_{name}.md").write_text(text)
    console.print(f"{out / f'probed_{name}.md'}")


def row(objective: str, cfg: float, run: Run, report: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a row of the table, by column."""
    seconds = sum(line["time"]["seconds"] for line in jsonl.read(folder / "log.jsonl"))
    student, teacher = report["student"], report["teacher"]
    return {
        "objective": objective,
        "cfg": f"{cfg:g}",
        "distance": f"{student['frechet']:.4g}",
        "teacher": f"{teacher['frechet']:.4g}",
        "ratio": f"{report['ratio']:.2f}",
        "agreement": f"{student['label_agreement']:.1%}" if "label_agreement" in student else "",
        "teacher's": f"{teacher['label_agreement']:.1%}" if "label_agreement" in teacher else "",
        "entry": f"{run.entry.nsr:g}",
        "rate": f"{run.generator.lr:g}",
        "images": f"{report['images']:,}",
        "minutes": f"{seconds / 60:.0f}",
        "standard": standard_cells(report),
        "protocol": f"{report['protocol']}, {report['samples']:,} samples",
    }


def page(name: str, rows: list[dict[str, Any]]) -> str:
    """Return the page as Markdown."""
    protocol = rows[0]["protocol"]
    columns = [column for column in rows[0] if column not in ("protocol", "standard")]
    table = "".join(f"| {' | '.join(one[column] for column in columns)} |\n" for one in rows)
    standard = {f"{one['objective']}, cfg {one['cfg']}": one["standard"] for one in rows}
    return (
        f"# {name}: recipes of the probe, unchanged\n\nWritten by `python -m benchmarks.probed` with torch"
        f" {torch.__version__}. Each row is the recipe that `distill probe` wrote for the objective, with seed 0.\n\n"
        f"The distances are Frechet distances in {protocol}. Students take 1 evaluation. The teacher takes 35 under the"
        " same guidance.\n\n"
        f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}\n{table}\n"
        f"![samples of every student on the same noise and labels](probed_{name}.png)\n"
        f"{standard_table(standard)}"
    )


if __name__ == "__main__":
    typer.run(main)
