"""The export of a trained generator, with the facts for its model card."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from distill.errors import UserError
from distill.public_text import public_name, public_value
from distill.records import read_record
from distill.teachers import read_origin
from trainers.data import Data, DataFree, Digits
from trainers.data.tables import FORMATS, local_path
from trainers.recipe.load import RUN_FILE
from trainers.recipe.public import public_changes, public_recipe
from trainers.recipe.run import Run
from trainers.recipe.strict_yaml import to_yaml
from trainers.runs.card_pictures import card_pictures, check_prompts
from trainers.runs.compare import Comparison
from trainers.runs.distillation import teacher_identity
from trainers.runs.trained_model import TrainedModel

if TYPE_CHECKING:
    from distill.export import CardFacts

FOLDERS = ("data", "dataset", "datasets", "images", "runs", "teachers")  # the usual names of folders, and no owners
PACKAGES = ("distill-onestep", "torch", "diffusers", "accelerate")


def export_folder(folder: Path, format: str) -> Path:
    """Return the folder of an export for which the user names none."""
    return folder / ("export" if format == "diffusers" else f"export-{format}")


def export_trained(
    trained: TrainedModel,
    out: str | Path | None = None,
    format: str = "diffusers",
    hub: str | None = None,
    license: str | None = None,
    prompts: Sequence[str] = (),
) -> float:
    """Export the generator of a run. Arguments and result are those of `Trained.export`."""
    from distill.export import check_license, export_generator

    check_license(license)
    if format == "lora" and trained.merged:
        trained = replace(trained, merged=False)  # its networks are read again: merged adapters cannot be taken out
    generator, run = trained.generator, cast(Run, trained.run)
    if trained.images == 0:
        raise UserError(f"'{trained.folder}' has not trained yet: its checkpoint is the teacher's, at 0 images")
    check_prompts(generator, prompts)
    teacher = None if trained.objects.teacher is not None else Path(run.teacher)
    folder = export_folder(trained.folder, format) if out is None else Path(out)
    facts = replace(card_facts(trained, run), license=license, pictures=card_pictures(generator, prompts))
    return export_generator(generator, folder, facts, format, teacher=teacher, hub=hub)


def card_facts(trained: TrainedModel, run: Run) -> CardFacts:
    """Return the facts about the training for the model card, without pictures and licence."""
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
        base_model=None if trained.objects.teacher is not None else base_model(Path(run.teacher)),
        data=data_name(run.data),
    )


def base_model(teacher: Path) -> str:
    """Return the model that a teacher's folder was imported from, or else the public name of the folder.

    The folder `teacher/` of a run has the name of the run.
    """
    if (origin := read_origin(teacher)) is not None:
        return str(public_value(origin))
    run = teacher.name == "teacher" and (teacher.parent / RUN_FILE).is_file()
    return public_name((teacher.parent if run else teacher).resolve())


def data_name(data: Data) -> str | None:
    """Return the id on the hub of a recipe's data, or else their name without a path. None for no data.

    A path that exists here is no id, and neither is one that begins with a folder of FOLDERS: the data of a run may
    have been removed since.
    """
    if isinstance(data, DataFree):
        return None
    path = getattr(data, "path", None)
    if path is None:
        return "digits" if isinstance(data, Digits) else None
    owner = re.fullmatch(r"([\w-]+)/[\w.-]+", path)
    is_id = owner is not None and owner[1] not in FOLDERS and Path(path).suffix not in FORMATS
    return path if is_id and not local_path(path).exists() else public_name(path)


def metrics_of(trained: TrainedModel) -> dict[str, Any] | None:
    """Return the content of evaluation.json, or None if its numbers are not those of the exported weights."""
    try:
        report: dict[str, Any] = read_record(trained.folder / "evaluation.json", Comparison, finite=False)
    except FileNotFoundError:
        return None
    same = (report["images"], report["average"]) == (trained.images, trained.average)
    return report if same and "student" in report else None
