"""What works with what: every kind of teacher under every objective and in every export, tried at a tiny size.

`python -m tests.support` tries it all and writes docs/support.md; tests/test_support.py compares.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from distill.errors import UserError
from distill.export import FORMATS
from distill.objectives import OBJECTIVES
from tests.families import TEACHERS, fine_tuning, recipe
from tests.tiny import ROOT, build_session, experiment, fit_run
from trainers.recipe.tiny import materialise
from trainers.runs import make_pairs
from trainers.runs.load import load_trained

WORKS = ("yes", "stock", "custom")
PAGE = ROOT / "docs/support.md"
ADAPTERS = {"lr": 1e-3, "lora": {"rank": 2}}
WITHIN: dict[str, Any] = {  # what an objective needs beside its name; TEACHER is the teacher's folder
    "sida": {"generator_from": 0, "adversarial_from": 0},
    "uni_instruct": {"generator_from": 0, "adversarial_from": 0},
    "guided": {"objective": "sid"},
    "decoupled": {"objective": "diff_instruct"},
    "autoguided": {"objective": "sid", "weak_teacher": "TEACHER"},
    "rewarded": {
        "objective": "diff_instruct",
        "reward": {"name": "aesthetic", "clip": "tiny:aesthetic", "head": "tiny:aesthetic/head.safetensors"},
        "reward_scale": 1.0,
    },
}
TUNINGS: dict[str, dict[str, Any]] = {"weights": {}, "adapters": {"lora": {"rank": 2}}}
"""The ways of fine-tuning a teacher, and the keys of a recipe that ask for them."""
ROWS = (*OBJECTIVES, *FORMATS, *TUNINGS)
BESIDE: dict[str, dict[str, Any]] = {"hipa": {"generator": ADAPTERS}}  # and the recipe


TEXT = """# What works with what

The tests try every teacher under every objective and in every export, at a tiny size with random weights on a CPU.
`make test-support` tries it all again and compares with this page, and `make support` writes the page anew.

The columns are teachers. `unet` is what `distill teacher` trains with a null label (without one, its export is a stock
pipeline). `edm` and `edm_cond` (DDPM++), `adm` and `edm2` are what `distill import edm` and `distill import edm2`
write. `own` is a user's own `nn.Module`. The others are diffusers pipelines. For each of them, `make test` runs four
updates under one objective with the gradient through both denoisers and four under one without, an exact resume, and
the export in a process without this package (`tests/trainers/runs/test_families.py`).

## Objectives

"yes" means that two updates of all players ran on images, with prompts or labels where the teacher takes them, that
all numbers are finite, and that the generator has moved. A number stands for the line below that refuses it.

{objectives}

## Exports

"stock" is a pipeline of diffusers' own classes, "custom" is one with a file of code inside, and "yes" is another
format. Each was written, read back as its user reads it, and gave the generator's samples to 1e-4.

{formats}

## Fine-tuning

"yes" means that the teacher was fine-tuned for two updates on images, of its weights or of adapters on them, that the
result was distilled, and that the export of the student gave its samples to 1e-4.

{tunings}

## Refusals

{refusals}
"""


def tried(what: Callable[[], str]) -> str:
    """What it gives; of a refusal the line, without the names of files."""
    try:
        return what()
    except UserError as refusal:
        return re.sub(r"'/[^']*/", "'", str(refusal))


def trains(name: str, objective: str, teacher: Path) -> str:
    """Two updates of both players, through the whole loop; "yes" if all is finite and the generator has moved."""
    with tempfile.TemporaryDirectory() as work:
        settings = recipe(name, under(objective, teacher, Path(work)), teacher, Path(work), real=True, images=8)
        settings |= BESIDE.get(objective, {})
        if objective in ("dmd", "hipa"):
            settings["pairs"] = {"folder": solved(settings, Path(work))}
        session = fit(settings, Path(work) / "run")
        player = session.state.players["generator"]
        start = build_session(settings).state.players["generator"]
        assert player.counters()["skipped"] == 0 and all(bool(weight.isfinite().all()) for weight in player.parameters)
        changed = any(not torch.equal(*both) for both in zip(player.parameters, start.parameters, strict=True))
        return "yes" if changed else "the generator stays where it is"


def under(objective: str, teacher: Path, work: Path) -> dict[str, Any]:
    """The settings of an objective."""
    within = {key: str(teacher) if value == "TEACHER" else value for key, value in WITHIN.get(objective, {}).items()}
    settings: dict[str, Any] = materialise({"name": objective, **within}, work)
    return settings


def solved(settings: dict[str, Any], work: Path) -> str:
    """A folder of ODE pairs for a recipe."""
    run: Any = experiment({**settings, "objective": "sid"})
    made = make_pairs.make_pairs(
        run.teacher,
        run.data.load(),
        work / "pairs",
        4,
        make_pairs.PairSettings(evaluations=3),
        4,
        torch.device("cpu"),
        work,
    )
    list(made)
    return str(work / "pairs")


def exports(name: str, format: str, teacher: Path) -> str:
    """A trained generator in a format, read back: "yes"; of pipelines "stock", or "custom" where they bring code."""
    with tempfile.TemporaryDirectory() as work:
        settings = recipe(name, "diff_instruct", teacher, Path(work), images=4)
        if format == "lora":
            settings["generator"] = ADAPTERS
        fit(settings, run := Path(work) / "run")
        load_trained(run, merged=format != "lora").export(out := Path(work) / "export", format)
        return "yes" if format != "diffusers" else "custom" if list(out.rglob("*.py")) else "stock"


def tunes(name: str, how: str, teacher: Path) -> str:
    """A teacher that is fine-tuned, distilled and exported: "yes"."""
    with tempfile.TemporaryDirectory() as work:
        fit(fine_tuning(name, teacher, Path(work), **TUNINGS[how]), Path(work) / "tuned")
        fit(recipe(name, "diff_instruct", Path(work) / "tuned" / "teacher", Path(work), images=4), Path(work) / "run")
        load_trained(Path(work) / "run").export(Path(work) / "export", "safetensors" if name == "own" else "diffusers")
        return "yes"


def cell(name: str, row: str, teacher: Path) -> str:
    """What stands in `row`, an objective, a format or a way of fine-tuning, for the teacher `name`."""
    return tried(partial(trains if row in OBJECTIVES else exports if row in FORMATS else tunes, name, row, teacher))


def fit(settings: dict[str, Any], folder: Path) -> Any:
    torch.manual_seed(0)
    return fit_run(settings, folder)


def page(cells: dict[tuple[str, str], str]) -> str:
    """docs/support.md of (teacher, row) -> cell."""
    texts = [cells[name, row] for row in ROWS for name in TEACHERS]
    notes = [*dict.fromkeys(text for text in texts if text not in WORKS)]

    def table(rows: Iterable[str]) -> str:
        lines = [["", *TEACHERS], ["---"] * (len(TEACHERS) + 1)]
        for row in rows:
            found = [cells[name, row] for name in TEACHERS]
            lines.append([f"`{row}`", *(text if text in WORKS else str(notes.index(text) + 1) for text in found)])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    refusals = "\n".join(f"{number}. `{note}`" for number, note in enumerate(notes, 1))
    return TEXT.format(objectives=table(OBJECTIVES), formats=table(FORMATS), tunings=table(TUNINGS), refusals=refusals)


def read(text: str) -> dict[tuple[str, str], str]:
    """The cells of a page."""
    notes = dict(re.findall(r"^(\d+)\. `(.*)`$", text, re.MULTILINE))
    cells = {}
    for line in text.splitlines():
        if found := re.match(r"\| `(\S+)` \| (.*) \|$", line):
            for name, cell in zip(TEACHERS, found[2].split(" | "), strict=True):
                cells[name, found[1]] = notes.get(cell, cell)
    return cells


def main() -> None:
    cells = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, write in track(TEACHERS.items(), "teachers"):
            write(teacher := Path(folder) / name)
            cells |= {(name, column): cell(name, column, teacher) for column in ROWS}
    PAGE.write_text(page(cells))


if __name__ == "__main__":
    main()
