"""distill probe: a teacher measured, and a recipe for it."""

from pathlib import Path
from typing import Annotated

import typer


def probe(
    teacher: Annotated[Path, typer.Argument(help="A teacher's folder, or the run folder that trained it.")],
    data: Annotated[
        str | None,
        typer.Option(help="Pictures or prompts by their path, or the data as in a recipe: digits. Default: no images."),
    ] = None,
    objective: Annotated[str, typer.Option(help="The objective of the recipe.")] = "sid",
    cfg: Annotated[float, typer.Option(help="The guidance scale of the teacher in D_null + scale (D - D_null).")] = 1.0,
    classifier: Annotated[
        Path | None, typer.Option(help="The classifier whose features the recipe's evaluation measures.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="The folder of report and recipe. Default: probes/TEACHER_OBJECTIVE.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="The minutes that the probe may take here, roughly.", min=0.01)] = 8,
    run_minutes: Annotated[float, typer.Option(help="The minutes that a run should take here.", min=0.1)] = 30,
) -> None:
    """Measure a teacher, and write a report and a recipe with the reason for each of its values."""
    from trainers.io.console import plain, progress
    from trainers.probe import probe as run_probe
    from trainers.probe.starting import starting_recipe
    from trainers.probe.unusual import unusual

    run = starting_recipe(teacher, data, objective, cfg, classifier)
    folder = folder or Path("probes") / run.name
    with progress() as say:
        found = run_probe(run, folder, minutes, run_minutes, say)
    for sentence in unusual(found):
        plain().print(sentence)
    plain().print(f"report: {folder / 'report.md'}")
    plain().print(f"recipe: {folder / 'recipe.yaml'}")
