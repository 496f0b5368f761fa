"""The short form of a shipped recipe without a key `tiny`: those of the digits and of Fashion-MNIST.

Networks and data keep their size, since both are small. The teacher has random weights, and pairs, classifiers and
pictures are made in the run folder, so that nothing has to be trained or downloaded first.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from distill.metrics import Classifier
from distill.teachers import save_denoiser
from trainers.data import Dataset
from trainers.io.atomic import atomic_folder
from trainers.recipe.load import resolve
from trainers.recipe.run import Run
from trainers.recipe.shipped import find_recipe, shipped_recipes
from trainers.recipe.strict_yaml import assign, load_yaml
from trainers.recipe.teacher_run import TeacherRun
from trainers.recipe.tiny import BATCH, SHORT, UPDATES, materialise
from trainers.recipe.words import open_given
from trainers.runs.make_pairs import PairSettings, make_pairs
from trainers.runs.teacher import fresh_denoiser

_PAIRS, _EVALUATIONS = 8, 3


def has_short_form(recipe: str) -> bool:
    """Return whether a recipe is a shipped one without a key `tiny`."""
    return recipe in shipped_recipes() and "tiny" not in load_yaml(find_recipe(recipe))


def short_form(recipe: str, overrides: Sequence[str], folder: Path) -> Run | TeacherRun:
    """Return the short form of a recipe, after what it needs was made in the folder `tiny` of the run.

    Args:
        recipe: The name of a shipped recipe that `has_short_form`, and that trains no classifier.
        overrides: Changes as text, which hold above those of the short form.
        folder: The run folder.

    Raises:
        UserError: An override is wrong.
    """
    settings, tiny = load_yaml(find_recipe(recipe)), folder / "tiny"
    players = "generator" if "objective" in settings else "optimizer"
    changes: dict[str, Any] = {key: value for key, value in SHORT.items() if "." not in key or key.startswith(players)}
    changes |= {"name": f"{settings['name']}_tiny", "evaluation": {"every": 0}}
    settings["data"] = short_data(settings["data"], tiny)
    for key, value in changes.items():
        assign(settings, key, value, recipe)
    if "objective" in settings:
        _make_needs(settings, tiny)
    return resolve(settings, overrides)


def short_data(data: Any, tiny: Path) -> Any:
    """Return the data of a recipe, with pictures that are made in the folder `tiny` in place of a data set's."""
    if isinstance(data, str) or "path" not in data:
        return data
    return {**data, "path": materialise("tiny:labelled", tiny)}


def _make_needs(settings: dict[str, Any], tiny: Path) -> None:
    """Make the teachers, the pairs and the classifier that a distillation names, and name them in their place."""
    data, objective = open_given(settings["data"]), settings["objective"]
    settings["teacher"] = _make_teacher(settings["teacher"], data, tiny)
    settings.pop("start", None)  # of the teacher, in place of a finished run
    if "weak_teacher" in objective:
        objective["weak_teacher"] = _make_teacher(objective["weak_teacher"], data, tiny)
    if "reward" in objective:
        torch.manual_seed(0)
        objective["reward"]["classifier"] = str(tiny / "classifier")
        Classifier(data.shape, data.classes, width=16, data=data.name).save(tiny / "classifier")
    if "pairs" in settings:
        settings["pairs"]["folder"] = str(tiny / "pairs")
        made = partial(make_pairs, settings["teacher"], data, tiny / "pairs", _PAIRS)
        list(made(PairSettings(evaluations=_EVALUATIONS), _PAIRS, torch.device("cpu")))
    for number, key in enumerate(("generator_from", "adversarial_from"), start=1):
        if key in objective:
            objective[key] = number * BATCH * UPDATES // 4


def _make_teacher(place: str, data: Dataset, tiny: Path) -> str:
    """Write a teacher with random weights, of the network that the shipped recipe of the run at `place` describes."""
    name = Path(place).parent.name
    folder = tiny / name
    if not folder.exists():
        torch.manual_seed(0)
        with atomic_folder(folder) as staging:
            save_denoiser(fresh_denoiser(cast(TeacherRun, resolve(name)), data.shape, data.classes), staging)
    return str(folder)
