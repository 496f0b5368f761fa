"""The export of a trained generator, with the facts for its model card."""

from __future__ import annotations

import platform
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from distill.errors import UserError
from distill.public_text import public_value
from distill.records import read_record
from trainers.recipe.public import public_changes, public_recipe
from trainers.recipe.run import Run
from trainers.recipe.strict_yaml import to_yaml
from trainers.runs.compare import Comparison
from trainers.runs.distillation import teacher_identity
from trainers.runs.trained_model import TrainedModel

if TYPE_CHECKING:
    from distill.export import CardFacts

PACKAGES = ("distill-onestep", "torch", "diffusers", "accelerate")


def export_folder(folder: Path, format: str) -> Path:
    """Return the folder of an export for which the user names none."""
    return folder / ("export" if format == "diffusers" else f"export-{format}")


def export_trained(
    trained: TrainedModel, out: str | Path | None = None, format: str = "diffusers", hub: str | None = None
) -> float:
    """Export the generator of a run. Arguments and result are those of `Trained.export`."""
    from distill.export import export_generator

    if format == "lora" and trained.merged:
        trained = replace(trained, merged=False)  # its networks are read again: merged adapters cannot be taken out
    generator, run = trained.generator, cast(Run, trained.run)
    if trained.images == 0:
        raise UserError(f"'{trained.folder}' has not trained yet: its checkpoint is the teacher's, at 0 images")
    teacher = None if trained.objects.teacher is not None else Path(run.teacher)
    folder = export_folder(trained.folder, format) if out is None else Path(out)
    return export_generator(generator, folder, card_facts(trained, run), format, teacher=teacher, hub=hub)


def card_facts(trained: TrainedModel, run: Run) -> CardFacts:
    """Return the facts about the training for the model card."""
    from distill.export import CardFacts

    recipe = public_recipe(run)
    return CardFacts(
        name=recipe["name"],
        objective=recipe["objective"],
        teacher=recipe["teacher"],
        teacher_sha256=teacher_identity(run, trained.objects),
        images=trained.images,
        average=trained.average,
        metrics=public_value(metrics_of(trained)),
        versions={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        recipe=to_yaml(recipe),
        changes=public_changes(trained.weights.changes),
    )


def metrics_of(trained: TrainedModel) -> dict[str, Any] | None:
    """Return the numbers of evaluation.json, or None if they are not those of the exported weights."""
    try:
        report = read_record(trained.folder / "evaluation.json", Comparison, finite=False)
    except FileNotFoundError:
        return None
    if (report["images"], report["average"]) != (trained.images, trained.average) or "student" not in report:
        return None
    metrics = {"protocol": report["protocol"], "samples": report["samples"]}
    if "halves" in report:
        metrics["real halves, frechet"] = report["halves"]
    for model in ("student", "teacher"):
        metrics |= {f"{model}, {name}": value for name, value in report.get(model, {}).items()}
    return metrics
