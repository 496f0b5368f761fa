"""The probe of a teacher, from its recipe to its folder."""

from collections.abc import Callable
from pathlib import Path

from distill.errors import UserError
from trainers.plan.trace import plan
from trainers.probe.findings import Findings
from trainers.probe.measure import measure, open_subject
from trainers.probe.recipe import to_text, values
from trainers.probe.report import write
from trainers.probe.rules import recipe
from trainers.recipe.load import build_experiment
from trainers.recipe.run import Run
from trainers.recipe.teacher_run import TeacherRun

HEAD = """Written by `distill probe {teacher}`. Each value has its reason above it, and report.md has the measurements.
Train it with `distill train {file}`."""


def probe(
    run: Run, folder: Path, minutes: float = 8.0, run_minutes: float = 30.0, say: Callable[[str], None] = print
) -> Findings:
    """Measure a teacher, and write report.md, report.json, recipe.yaml, samples.png and entry.png to a folder.

    Args:
        run: The teacher, the data and the objective. Other values are replaced by those that the rules give.
        folder: The folder. The files of an earlier probe in it are replaced.
        minutes: The time that the probe may take on this machine, roughly.
        run_minutes: The time that a run of the recipe should take on this machine.
        say: Is told the next step.

    Raises:
        UserError: Something that the recipe names is missing or does not fit, or no rules are known for its objective.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--folder: '{folder}' is no folder")
    subject = open_subject(run, minutes)
    found = measure(subject, say)
    pixels = subject.dataset.read is not None and not subject.teacher.latents
    choices = recipe(run, found, run_minutes, pixels)
    say("memory")
    found.memory = peak_memory_of(build_experiment(values(choices), "recipe.yaml"))
    text = to_text(choices, HEAD.format(teacher=run.teacher, file=folder / "recipe.yaml"))
    write(found, folder, f"Probe of {Path(run.teacher).name}", text, subject.teacher)
    return found


def peak_memory_of(run: Run | TeacherRun) -> float | None:
    """Return the bytes that a recipe takes on one GPU at its peak, or None if its network cannot be traced."""
    assert isinstance(run, Run)
    try:
        return plan(run, 1).peak.bytes
    except UserError:
        return None
