"""distill quickstart: a teacher of the digits, its distillation, evaluation and export."""

import time
from pathlib import Path
from typing import Annotated

import typer


def quickstart(
    runs: Annotated[Path, typer.Option(help="The folder for the two runs.")] = Path("runs"),
) -> None:
    """Train a digits teacher, distil it into one step with SiD, evaluate and export it."""
    from rich.console import Console

    import trainers
    from launch.commands.evaluate import table
    from trainers.api import finish
    from trainers.io.console import plain
    from trainers.recipe.load import resolve
    from trainers.reports import write_report
    from trainers.runs.plots import distance_curve, side_by_side

    console = plain()
    started = time.perf_counter()
    console.rule("1 of 4: a class-conditional EDM teacher on the digits", align="left")
    teacher_folder = finish(resolve("digits_teacher"), runs, console)
    console.rule("2 of 4: distil it into one step with SiD", align="left")
    folder = finish(resolve("digits_sid", [f"teacher={teacher_folder / 'teacher'}"]), runs, console)
    console.rule("3 of 4: evaluate and draw", align="left")
    trained = trainers.load(folder)
    report = trained.evaluate()
    side_by_side(trained, folder / "side_by_side.png")
    distance_curve(folder, report, folder / "distance.png")
    console.rule("4 of 4: export", align="left")
    difference = trained.export()
    page = write_report(folder)
    Console().print(table(report))
    console.print(
        f"report of the run, for a browser   {page}\n"
        f"teacher and student side by side   {folder / 'side_by_side.png'}\n"
        f"distance against images            {folder / 'distance.png'}\n"
        f"pipeline for stock diffusers       {folder / 'export'}   (differs by {difference:.1e} from the trainer)\n\n"
        "    from diffusers import DiffusionPipeline\n"
        f'    pipe = DiffusionPipeline.from_pretrained("{folder / "export"}")\n'
        "    images = pipe(batch_size=10, class_labels=list(range(10)), num_inference_steps=1).images\n\n"
        f"{time.perf_counter() - started:.0f} seconds"
    )
