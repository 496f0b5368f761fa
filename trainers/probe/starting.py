"""The recipe with which a probe starts: the teacher, the data and the objective, and nothing that the rules give."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.teachers import DESCRIPTION, load_denoiser
from trainers.recipe.load import resolve
from trainers.recipe.run import Run
from trainers.recipe.strict_yaml import override


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
        "data": _data(data, folder),
        "objective": settings,
        "images": 1,  # the rules give these two
        "batch_size": 1,
    }
    if classifier is not None:
        recipe["evaluation"] = {"classifier": str(classifier)}
    run = resolve(recipe)
    assert isinstance(run, Run)
    return run


def _data(given: str | Mapping[str, Any] | None, folder: Path) -> Any:
    """Return the value of the key `data`."""
    words = override({}, [f"data={given}"])["data"] if isinstance(given, str) else given
    if isinstance(words, Mapping):
        return words
    network = load_denoiser(folder, weights=False).network
    if given is None:
        if network.text_encoder is not None:
            raise UserError(f"--data: the teacher '{folder}' takes prompts; name a file of them")
        return {"name": "data_free", "shape": list(network.shape), "classes": network.classes}
    if not Path(str(given)).exists():
        return given  # the name of a source, such as digits
    if network.text_encoder is not None:
        return {"name": "prompts", "path": str(given)}
    size = list(network.shape[1:])
    resolution = size[0] if len(set(size)) == 1 else size
    labels = {} if network.classes else {"label_column": None}
    mode = "L" if network.shape[0] == 1 else "RGB"
    return {"name": "images", "path": str(given), "resolution": resolution, "mode": mode, **labels}
