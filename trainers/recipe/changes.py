"""The changes of a recipe that a resume accepts."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from distill.errors import FEW, UserError, options
from distill.user_code import naming
from trainers.recipe.load import build_experiment, changed, load_run, resolve_paths
from trainers.recipe.run import Run
from trainers.recipe.strict_yaml import diff, difference_lines, differences, dump
from trainers.recipe.teacher_run import TeacherRun

PLACES = {"teacher", "start", "cache", "pairs.folder", "data.path"}
"""The keys that are paths, whose content is compared by its hash."""
FREE_KEYS = PLACES | {
    "name",
    "images",
    "keep",
    "tracking",
    "evaluation",
    "health",
    "max_skipped",
    "objects",
    "sampler",
    "workers",
}
"""The keys whose change leaves the training as it was."""
DRAWN = frozenset({"evaluation", "precision", "sampler"})
"""The keys that say how samples are drawn and measured, which every model can be given anew."""
_T = TypeVar("_T")


def load_moved_run(folder: Path, changes: Mapping[str, Any]) -> Run | TeacherRun:
    """Return the experiment of a run folder whose teacher or data lie elsewhere than at its training.

    Args:
        folder: The run folder.
        changes: The new values of PLACES and of DRAWN, by key or dotted key.

    Raises:
        UserError: Another key is changed, or the run is wrong.
    """
    run = load_run(folder)
    with naming(None, folder):
        return change_alone(resolve_paths(run), changes, PLACES | DRAWN, f"'{folder}'") if changes else run


def change_alone(experiment: _T, changes: Mapping[str, Any], allowed: Iterable[str], where: str) -> _T:
    """Return an experiment with other values of the allowed keys.

    Args:
        experiment: The experiment.
        changes: The new values, by key or dotted key.
        allowed: The keys.
        where: The beginning of every error message.

    Raises:
        UserError: Another key is changed, or a value is wrong.
    """
    moved, keys = changed(experiment, changes), sorted(allowed)
    for line in diff(dump(experiment), dump(moved)):
        if not line.startswith(tuple(f"{key}{end}" for key in keys for end in ".:")):
            raise UserError(f"{where}: {line}: can be changed here: {', '.join(keys)}")
    return moved


def recipe_changes(state: Mapping[str, Any], run: Run | TeacherRun, folder: Path) -> dict[str, tuple[Any, Any]]:
    """Return the values (before, after) of each dotted key that changed since the checkpoint with this `state`."""
    with naming(None, folder):  # built and dumped, so that keys that are newer than the checkpoint get their defaults
        return differences(dump(build_experiment(state["recipe"], "checkpoint")), dump(run))


def accepted_changes(
    state: Mapping[str, Any], run: Run | TeacherRun, folder: Path, allow: Iterable[str] = ()
) -> list[str]:
    """Return a line for each key that changed since the checkpoint with this `state`.

    Args:
        state: The content of state.json of the checkpoint.
        run: The experiment that resumes.
        folder: The run folder.
        allow: Further keys whose change the user accepts. Keys inside them are accepted too.

    Raises:
        UserError: A key changed that may change the training, and the user has not accepted it. Or `images` was
            lowered below the images that are done.
    """
    changes, done = recipe_changes(state, run, folder), state["images"]
    if "images" in changes and run.images < done:  # a run may end a part of a batch beyond its last image
        raise UserError(
            f"images: {run.images:,} is below the {done:,} that '{run.name}' has trained on; give {done:,} or more"
        )
    free = tuple(f"{key}." for key in FREE_KEYS.union(allow))  # the dot, so that a key is no beginning of another one
    kept = {key for key in changes if key.endswith("_every") or f"{key}.".startswith(free)}
    if refused := {key: pair for key, pair in changes.items() if key not in kept}:
        many = len(refused) > FEW  # then their groups are named, since --allow accepts all keys of a group
        keys = dict.fromkeys(key.partition(".")[0] if many else key for key in refused)
        allowing, lines = " ".join(f"--allow {key}" for key in keys), options(difference_lines(refused))
        raise UserError(f"{lines}: this would change what is trained; {allowing} accepts it")
    return [f"changed since the checkpoint: {line}" for line in difference_lines(changes)]
