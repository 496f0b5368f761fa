"""distill quickstart: teacher, distillation, evaluation and export of the digits, end to end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from launch.commands.evaluate import measure, table
from launch.commands.export import export_product
from launch.commands.plots import distance_curve, side_by_side
from launch.commands.train import check, resolve
from launch.processes import join_world
from trainers.checkpoints import checkpoint
from trainers.io.console import plain
from trainers.loop import fit, load_run
from trainers.recipe.run import Run, TeacherRun
from trainers.runs.load import load_trained


def quickstart(
    runs: Annotated[Path, typer.Option(help="folder for the two runs")] = Path("runs"),
) -> None:
    """Train a digits teacher, distil it into one step with SiD, evaluate and export it."""
    console = plain()
    started = time.perf_counter()
    console.rule("1 of 4: a class-conditional EDM teacher on the digits", align="left")
    teacher_folder = finish(resolve("digits_teacher", []), runs, console)
    console.rule("2 of 4: distil it into one step with SiD", align="left")
    folder = finish(resolve("digits_sid", [f"teacher={teacher_folder / 'teacher'}"]), runs, console)
    console.rule("3 of 4: evaluate and draw", align="left")
    product = load_trained(folder)
    report = measure(product)
    (folder / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n")
    side_by_side(product, folder / "side_by_side.png")
    distance_curve(folder, report, folder / "distance.png")
    console.rule("4 of 4: export", align="left")
    difference = export_product(product, folder, folder / "export")
    Console().print(table(report))
    console.print(
        f"teacher and student side by side   {folder / 'side_by_side.png'}\n"
        f"distance against images            {folder / 'distance.png'}\n"
        f"pipeline for stock diffusers       {folder / 'export'}   (differs by {difference:.1e} from the trainer)\n\n"
        "    from diffusers import DiffusionPipeline\n"
        f'    pipe = DiffusionPipeline.from_pretrained("{folder / "export"}")\n'
        "    images = pipe(batch_size=10, class_labels=list(range(10)), num_inference_steps=1).images\n\n"
        f"{time.perf_counter() - started:.0f} seconds"
    )


def finish(run: Run | TeacherRun, runs: Path, console: Console) -> Path:
    """Train `run`, or what is left of it, or nothing when it is complete already."""
    folder = runs / run.name
    saved = checkpoint.folders(folder / "checkpoints")
    if saved:
        run = load_run(folder)
        written = isinstance(run, Run) or (folder / "teacher").is_dir()
        if written and int(saved[0].name) >= run.images and checkpoint.flaw(saved[0]) is None:
            console.print(f"'{folder}' is complete already (remove the folder to train again)")
            return folder
    check(run, 1)
    fit(run, folder, join_world(None, run, folder), resume=bool(saved))
    return folder
