"""A comparison of all shipped recipes of a data set, as a page with a table and a picture.

`make bench-objectives` writes docs/results/digits.md. It trains the runs that are not trained yet, teachers first. All
runs share seed, evaluation and noise. The times are medians of rounds that take turns with rounds of SiD in one
process.

The measurements of each recipe are kept in digits.json beside the page. A call that was interrupted continues where it
stopped, also without its runs, and a later call measures the recipes that have changed.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
from accelerate import Accelerator
from PIL import Image, ImageDraw
from rich.console import Console

import trainers
from launch.commands.classifier import classifier
from launch.commands.pairs import pairs
from trainers.api import finish
from trainers.data.dataset import values_hash
from trainers.engine.session import Session
from trainers.engine.step import advance
from trainers.io import jsonl
from trainers.io.atomic import atomic_file
from trainers.io.console import plain
from trainers.io.images import grid
from trainers.loop import build_session
from trainers.recipe.load import resolve
from trainers.recipe.public import public_recipe
from trainers.recipe.run import Run
from trainers.recipe.shipped import find_recipe, shipped_recipes
from trainers.recipe.strict_yaml import load_yaml
from trainers.runs.load import Trained
from trainers.runs.open import open_run

RUNS = Path("runs")  # where the shipped recipes look for teachers, classifiers and pairs
BASE = "sid"
EVALUATIONS = 16  # of a run while it trains
CLASSES = 10
TURNS = 7  # of rounds, in the measurement of time
PAIRS = 20_000  # ODE pairs for the recipes that need some
STANDARD = {"kid": "KID", "precision": "precision", "recall": "recall"}
"""The titles of the metrics beside the Frechet distance and the agreement."""
MEASURED = {"metrics": ["frechet", "label_agreement", *STANDARD]}
"""What is measured of a run at its end, in place of its recipe's metrics."""


def main(
    data: Annotated[str, typer.Argument(help="The prefix of the recipes.")] = "digits",
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to every recipe: data.path=folder.")] = None,
    out: Annotated[Path, typer.Option(help="The folder of the page and the picture.")] = Path("docs/results"),
    only: Annotated[list[str] | None, typer.Option(help="These recipes alone, and sid. Default: all.")] = None,
) -> None:
    """Train, measure, and write page and picture."""
    console, store = plain(), out / f"{data}.json"
    out.mkdir(parents=True, exist_ok=True)
    base, known = cast(Run, resolve(f"{data}_{BASE}", overrides or [])), _read(store)
    rows: dict[str, dict[str, Any]] = {}
    for name, file in shipped_recipes().items():
        title = name.removeprefix(f"{data}_")
        chosen = name.startswith(f"{data}_") and (not only or title in (BASE, *only))
        if not chosen or "objective" not in load_yaml(file):
            continue
        run = cast(Run, resolve(name, overrides or []))
        row, recipe = known.get(title, {}), _hash(run)
        if row.get("recipe") != recipe:
            folder = _trained(name, overrides or [], console)
            trained, seconds = trainers.load(folder, evaluation=MEASURED), _relative_seconds(run, base)
            row = {"recipe": recipe, **_row(title, trained, folder, trained.evaluate(), seconds)}
            with atomic_file(store) as staging:
                staging.write_text(json.dumps(known | rows | {title: row}, indent=1) + "\n")
            console.print({key: value for key, value in row.items() if not key.startswith("samples")})
        rows[title] = row
    strips = [(title, row["samples"]) for title, row in rows.items()]
    strips.append(("teacher, 35 evaluations", rows[BASE]["samples of its teacher"]))
    picture([(title, _from_text(strip)) for title, strip in strips], out / f"{data}.png")
    command = "make bench-objectives" if data == "digits" else f"python -m benchmarks.objectives {data}"
    notes = out / f"{data}_notes.md"  # remarks that are written by hand, and that the page ends with
    page = _page(data, command, list(rows.values()))
    (out / f"{data}.md").write_text(page + (notes.read_text() if notes.exists() else ""))
    console.print(f"{out / data}.md")


def _hash(run: Run) -> str:
    """Return a hash of the values of a recipe, wherever its runs lie, and whether or not they are there yet."""
    return values_hash([json.dumps(public_recipe(run)).replace(f"{RUNS}/", "")])


def _read(store: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of earlier calls, by objective."""
    return dict(json.loads(store.read_text())) if store.exists() else {}


def _trained(name: str, overrides: list[str], console: Console) -> Path:
    """Finish the run of a shipped recipe, after those of the recipes that it names, and return its folder."""
    recipe = load_yaml(find_recipe(name))
    for needed in _named(recipe):
        if needed in shipped_recipes():
            _trained(needed, overrides, console)
    console.rule(name, align="left")
    folder = RUNS / name
    if recipe.get("trains") == "classifier":
        if not folder.exists():
            classifier(name, overrides)
        return folder
    run = resolve(name, overrides)
    if isinstance(run, Run):
        run = dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, every=run.images // EVALUATIONS))
        if run.pairs is not None:  # computes the pairs that are missing
            pairs(Path(run.teacher), Path(run.pairs.folder), PAIRS)
    return finish(run, RUNS, console)


def _named(settings: Any) -> Iterator[str]:
    """Yield the names of the runs whose folders a recipe names."""
    if isinstance(settings, dict):
        for value in settings.values():
            yield from _named(value)
    elif isinstance(settings, str):
        match Path(settings).parts:
            case (RUNS.name, name, *_):
                yield name


def _row(title: str, trained: Trained, folder: Path, report: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return a row of the table, by column."""
    student, final = report["student"], report["student"]["frechet"]
    reached = [r["images"] for r in jsonl.read(folder / "metrics.jsonl") if r["frechet"] <= 2 * final]
    return {
        "objective": title,
        "distance": final,
        "ratio": report["ratio"],
        "halves": final / report["halves"],
        "agreement": student.get("label_agreement", float("nan")),
        "teacher": report["teacher"]["frechet"],
        "images": trained.images,
        "reached": min(reached, default=trained.images),
        "seconds": seconds,
        "standard": standard_cells(report),
        "samples": _as_text(strip(trained.sample(2 * CLASSES))),
        "samples of its teacher": _as_text(strip(trained.sample(2 * CLASSES, teacher=True))),
        "protocol": f"{report['protocol']}, {report['samples']:,} samples, real halves {report['halves']:.4f}",
    }


def _relative_seconds(run: Run, base: Run) -> float:
    """Return the time for an image of generator training, relative to the base recipe."""
    sessions = [_session(run), _session(base)]
    ratios = []
    for turn in range(TURNS + 1):
        ours, theirs = (_seconds(session) / session.run.batch_size for session in sessions)
        if turn:  # the first is warm-up
            ratios.append(ours / theirs)
    return statistics.median(ratios)


def _session(run: Run) -> Session:
    """Return a session of a recipe, in the middle of a long run."""
    opened = open_run(dataclasses.replace(run, images=10**9), 1)
    session = build_session(opened, Accelerator(cpu=not torch.cuda.is_available()))
    session.state.images = 10**8  # past every schedule
    return session


def _seconds(session: Session) -> float:
    """Return the seconds of one round."""
    start = time.perf_counter()
    advance(session)
    if session.accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _page(data: str, command: str, rows: list[dict[str, Any]]) -> str:
    """Return the page as Markdown."""
    head = (
        f"# {data.capitalize()}: every objective side by side\n\nWritten by `{command}` with torch {torch.__version__}."
        f" Each row is a shipped recipe (`configs/{data}_*.yaml`) with seed 0.\n\nThe distances are Frechet distances"
        f" in {rows[0]['protocol']}. Students take 1 evaluation and teachers 35. *2 x final* is the number of images"
        " after which the student's distance was first within twice its last, at one of the evaluations while it"
        " trained. *time* is the seconds for the same number of images, in SiD's.\n\n"
        "| objective | distance | / teacher | / real halves | agreement | images | 2 x final | time | its teacher |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
    )
    lines = [
        f"| {r['objective']} | {r['distance']:.4f} | {r['ratio']:.2f} | {r['halves']:.2f} | {r['agreement']:.2%} |"
        f" {r['images']:,} | {r['reached']:,} | {r['seconds']:.2f} | {r['teacher']:.4f} |\n"
        for r in rows
    ]
    standard = standard_table({r["objective"]: r["standard"] for r in rows})
    shown = f"![samples of every student on the same noise and labels]({data}.png)"
    return f"{head}{''.join(lines)}\n{shown}\n{standard}"


def standard_cells(report: dict[str, Any]) -> list[str]:
    """Return the standard metrics of an evaluation, the student's and the teacher's in turn."""
    return [f"{report[model][metric]:.4g}" for metric in STANDARD for model in ("student", "teacher")]


def standard_table(rows: dict[str, list[str]]) -> str:
    """Return a section of a page with the standard metrics of its rows, by the name of the row."""
    titles = ["", *(f"{title}{whose}" for title in STANDARD.values() for whose in ("", ", its teacher"))]
    lines = [titles, ["---"] * len(titles), *([name, *cells] for name, cells in rows.items())]
    return (
        "\n## KID, precision and recall\n\nThey are measured on the same samples, in the same features ([what each"
        " is](../evaluation.md#metrics)).\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    )


def strip(images: torch.Tensor) -> Image.Image:
    """Return images in one row."""
    return grid(images, len(images), least=28)


def _as_text(image: Image.Image) -> str:
    """Return a picture as text: its PNG in base64."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _from_text(text: str) -> Image.Image:
    """Return the picture in a text of `_as_text`."""
    return Image.open(io.BytesIO(base64.b64decode(text)))


def picture(strips: list[tuple[str, Image.Image]], file: Path) -> None:
    """Draw the strips of the objectives below one another, with their titles."""
    width, height, left = strips[0][1].width, strips[0][1].height, 150
    canvas = Image.new(strips[0][1].mode, (left + width, height * len(strips)), "white")
    pen = ImageDraw.Draw(canvas)
    for index, (title, row) in enumerate(strips):
        canvas.paste(row, (left, index * height))
        pen.text((4, index * height + height // 2 - 5), title, fill="black")
    canvas.save(file)


if __name__ == "__main__":
    typer.run(main)
