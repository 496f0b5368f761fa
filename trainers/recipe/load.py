"""Functions that turn a recipe or a run folder into a Run or a TeacherRun."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from glob import iglob
from os.path import exists, realpath  # false for what can be no path, such as a name that is too long
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_type_hints

from distill.annotations import LocalPath
from distill.errors import UserError
from distill.user_code import naming
from trainers.recipe.run import Run
from trainers.recipe.shipped import find_recipe
from trainers.recipe.strict_yaml import Where, assign, build, dump, load_yaml, override
from trainers.recipe.teacher_run import EXPERIMENTS, TeacherRun
from trainers.recipe.tiny import shrink

RUN_FILE = "run.yaml"
_T = TypeVar("_T")


def load_run(folder: Path) -> Run | TeacherRun:
    """Return the experiment of a run folder.

    Raises:
        UserError: The folder has no run.yaml, or its run.yaml is wrong.
    """
    file = folder / RUN_FILE
    if not file.is_file():
        raise UserError(f"'{folder}' is not a run folder: it has no {RUN_FILE}")
    with naming(None, folder):  # it may come from a stranger, so its words are not the caller's
        return build_experiment(load_yaml(file), str(file))


def build_experiment(data: Mapping[str, Any], where: Where) -> Run | TeacherRun:
    """Return the experiment of a mapping.

    Args:
        data: The keys of a recipe. Its key `trains` states the kind of experiment. Without `trains`, a mapping with an
            objective or a teacher is a distillation.
        where: The beginning of every error message, such as a file.

    Raises:
        UserError: A key or a value is wrong.
    """
    kind = data.get("trains", "generator" if {"objective", "teacher"} & set(data) else "teacher")
    if not isinstance(kind, str) or kind not in EXPERIMENTS:
        place = where if isinstance(where, str) else where("trains")
        raise UserError(f"{place}: key 'trains' must be one of {', '.join(EXPERIMENTS)}, got {kind!r}")
    if data.get("precision") == "float16":  # a natural wish, which deserves its reason
        place = where if isinstance(where, str) else where("precision")
        raise UserError(
            f"{place}: key 'precision': float16 ends at 65,504, and losses, which are sums, pass it; use bfloat16"
        )
    return build(EXPERIMENTS[kind], {**data, "trains": kind}, where)


def resolve(
    recipe: str | Path | Mapping[str, Any] | Run | TeacherRun,
    overrides: Sequence[str] = (),
    changes: Mapping[str, Any] | None = None,
    tiny: Path | None = None,
) -> Run | TeacherRun:
    """Return the experiment of a recipe. The local files and folders that it names become absolute paths.

    Args:
        recipe: The name of a shipped recipe, a YAML file, a mapping of a recipe's keys, or an experiment.
        overrides: Changes as text, such as "images=1000" or "objective.alpha=1.0".
        changes: Changes as values, by key or dotted key. A mapping changes the keys that it names, and no others.
        tiny: The folder for a run with the recipe's `tiny` changes. None for the recipe as it is.

    Raises:
        UserError: The recipe is missing, or a key or a value is wrong.
    """
    words: Any = (list(changes.values()) if changes else [], override({}, overrides))  # the caller's own
    file = None
    if isinstance(recipe, Run | TeacherRun):
        if not overrides and not changes:
            return resolve_paths(recipe)
        settings, where = dump(recipe), recipe.name
    elif isinstance(recipe, Mapping):
        settings, where, words = dict(recipe), "recipe", (recipe, words)
    else:
        file = find_recipe(str(recipe))
        settings, where = load_yaml(file), str(recipe)
    written = dict(settings)
    shrunk = settings.pop("tiny", None)
    if tiny is not None:
        settings = shrink(settings, shrunk, tiny, where)
    settings = override(settings, overrides)
    places = {one.partition("=")[0].strip(): "command line" for one in overrides}
    places |= dict.fromkeys(_assign_all(settings, changes or {}), "arguments")
    with naming(words, Path.cwd()) if file is None else naming_recipe(file, written, words):
        return resolve_paths(build_experiment(settings, partial(_place, places, where)))


def changed(experiment: _T, changes: Mapping[str, Any]) -> _T:
    """Return an experiment of any kind with changes, as `resolve` takes them. Local paths become absolute.

    Args:
        experiment: The experiment.
        changes: The new values, by key or dotted key.

    Raises:
        UserError: A key or a value is wrong.
    """
    settings = dump(experiment)
    _assign_all(settings, changes)
    with naming(list(changes.values()), Path.cwd()):
        return resolve_paths(build(type(experiment), settings, "arguments"))


@contextmanager
def naming_recipe(file: Path, settings: dict[str, Any], words: Any) -> Iterator[None]:
    """Let the code run that a recipe and the caller's own words name, while the context is open.

    The words of a recipe inside a run folder are not the caller's, since the folder may come from a stranger.

    Args:
        file: The file of the recipe.
        settings: Its content.
        words: The caller's own words, as for `naming`.
    """
    folder = file.resolve().parent
    if any((place / RUN_FILE).is_file() for place in (folder, *folder.parents)):
        with naming(None, folder), naming(words, Path.cwd()):
            yield
    else:
        with naming((settings, words), folder):
            yield


def resolve_paths(run: _T) -> _T:
    """Return an experiment, or a part of it, whose LocalPaths are absolute where they exist or are globs of files."""
    if not dataclasses.is_dataclass(run) or isinstance(run, type):
        return run
    hints, changes = get_type_hints(type(run), include_extras=True), {}
    for one in (one for one in dataclasses.fields(run) if one.init):
        value, hint = getattr(run, one.name), hints[one.name]
        place = value
        if isinstance(value, str) and LocalPath in (hint, *get_args(hint)):
            place = Path(value).expanduser() if value.startswith("~/") else Path(value)
        local = isinstance(place, Path) and (exists(place) or any(iglob(str(place))))
        # `Path.resolve` raises a RuntimeError at a link to itself, which its reader refuses in a line.
        changes[one.name] = realpath(place) if local else resolve_paths(value)
    changed = {name: value for name, value in changes.items() if value is not getattr(run, name)}
    return cast(_T, dataclasses.replace(run, **changed)) if changed else run


def _place(places: Mapping[str, str], otherwise: str, key: str) -> str:
    """Return the place of a key: that of the change that set it or its group, or `otherwise`."""
    set_by = (
        place for dotted, place in places.items() if f"{key}.".startswith(f"{dotted}.") or dotted == f"{key}.name"
    )
    return next(set_by, otherwise)


def _assign_all(settings: dict[str, Any], changes: Mapping[str, Any]) -> list[str]:
    """Make changes to a mapping in place, and return the dotted keys that they set."""
    flat = [(key, *pair) for key, value in changes.items() for pair in _flat(key, value)]
    for key, dotted, value in flat:
        assign(settings, dotted, value, f"{key}=")
    return [dotted for _, dotted, _ in flat]


def _flat(key: str, value: Any) -> list[tuple[str, Any]]:
    """Return the dotted keys that a change sets, with their values. A mapping with a `name` replaces all of its key."""
    if isinstance(value, Mapping) and value and "name" not in value:
        return [pair for inner, one in value.items() for pair in _flat(f"{key}.{inner}", one)]
    return [(key, value)]
