"""A run from wherever it is to its end."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from trainers.api import resume, train
from trainers.checkpoints import checkpoint
from trainers.recipe.load import load_run
from trainers.recipe.run import Run, TeacherRun


def finish(run: Run | TeacherRun, runs: Path, console: Console) -> Path:
    """Train `run` in the folder `runs`/NAME, or what is left of it, and return that folder.

    A run folder that is there already is continued as its own run.yaml says.
    """
    folder = runs / run.name
    saved = checkpoint.folders(folder / "checkpoints")
    if not saved:
        train(run, folder)
        return folder
    run = load_run(folder)
    written = isinstance(run, Run) or (folder / "teacher").is_dir()
    if written and int(saved[0].name) >= run.images and checkpoint.flaw(saved[0]) is None:
        console.print(f"'{folder}' is complete already (remove the folder to train again)")
    else:
        resume(folder, 1)
    return folder
