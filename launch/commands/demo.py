"""distill demo: a shipped teacher and its one-step student, sampled, compared and exported, with their report."""

import time
from pathlib import Path
from typing import Annotated

import typer

from distill.errors import UserError

SHIPPED = Path(__file__).resolve().parents[1] / "demo"
"""The teacher and the run of the demo, which `configs/demo_teacher.yaml` and `configs/demo_sid.yaml` trained."""
TEACHER, RUN = "demo_teacher", "demo_sid"
SECONDS = 1.0  # of each measurement of speed, at least


def demo(
    folder: Annotated[Path, typer.Argument(help="The folder to write, which must not exist.")] = Path("demo"),
) -> None:
    """Sample a shipped teacher and its student, measure both, export the student, and write the report of its run."""
    if folder.exists():
        raise UserError(f"demo: '{folder}' exists already; name another folder, or remove it")

    import trainers
    from launch.commands.bench import speed_lines
    from trainers.io.console import plain
    from trainers.reports import write_report
    from trainers.runs.bench import bench_run
    from trainers.runs.plots import side_by_side

    console, started = plain(), time.perf_counter()
    copy_shipped(folder)
    trained = trainers.load(folder / RUN, "best")
    console.print(f"an EDM teacher of Fashion-MNIST, and its one-step student after {trained.images:,} images of SiD")
    side_by_side(trained, folder / "side_by_side.png")
    for line in speed_lines(*bench_run(trained, 64, SECONDS), 64, str(trained.device)):
        console.print(line)
    difference = trained.export(folder / "export")
    page = write_report(folder / RUN)
    console.print(
        f"teacher and student side by side   {folder / 'side_by_side.png'}\n"
        f"report of the run, for a browser   {page}\n"
        f"pipeline for stock diffusers       {folder / 'export'}   (differs by {difference:.1e} from the trainer)\n"
        f"{time.perf_counter() - started:.0f} seconds"
    )


def copy_shipped(folder: Path) -> None:
    """Copy the teacher and the run of the demo into a new folder. The run then names the teacher beside it."""
    import shutil

    from trainers.recipe.strict_yaml import load_yaml, to_yaml

    shutil.copytree(SHIPPED, folder)
    recipe = folder / RUN / "run.yaml"
    recipe.write_text(to_yaml(load_yaml(recipe) | {"teacher": str(folder / TEACHER)}))
