"""The recipe with which a probe starts: the teacher, the data and the objective, and nothing that the rules give."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.teachers import DESCRIPTION, load_denoiser
from trainers.recipe.load import resolve
from trainers.recipe.run import Run
from trainers.recipe.words import data_settings


def starting_recipe(
    teacher: Path,
    data: str | Mapping[str, Any] | None = None,
    objective: str = "sid",
    cfg: float = 1.0,
    classifier: Path | None = None,
) -> Run:
    """Return the recipe with which a probe starts.

    Args:
        teacher: A teacher's folder, the run folder that trained one, or the folder of a pipeline.
        data: The data: those of a recipe's key `data`, or pictures by their path, which are read as the teacher makes
            them. None for no images.
        objective: The name of the objective.
        cfg: The scale at which the teacher is guided. 1 is no guidance.
        classifier: The classifier whose features the recipe's evaluation measures.

    Raises:
        UserError: Something is missing or does not fit.
    """
    inner = teacher / "teacher"
    folder = inner if (inner / DESCRIPTION).exists() and not (teacher / DESCRIPTION).exists() else teacher
    settings: dict[str, Any] = {"name": objective}
    if cfg != 1:
        settings = {"name": "guided", "teacher_cfg": cfg, "fake_cfg": 1.0, "fake_training_cfg": 1.0} | {
            "condition_dropout": 0.0,
            "objective": settings,
        }
    recipe: dict[str, Any] = {
        "name": f"{(folder.parent if folder is inner else folder).resolve().name}_{objective}",
        "teacher": str(folder),
        "data": data_settings(data, load_denoiser(folder, weights=False).network, folder),
        "objective": settings,
        "images": 1,  # the rules give these two
        "batch_size": 1,
    }
    if classifier is not None:
        recipe["evaluation"] = {"classifier": str(classifier)}
    run = resolve(recipe)
    assert isinstance(run, Run)
    return run
