"""distill init: a commented recipe from the answers to five questions."""

import shlex
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from distill.errors import UserError

OBJECTIVE, BATCH_A_GPU, IMAGES = "sid", 64, 1_000_000
RATE = 1e-5  # of generator and fake: that of SiD on CIFAR-10
_T = TypeVar("_T", str, int)


def init(
    teacher: Annotated[
        str | None, typer.Option(help="The folder of a teacher or of a pipeline, or the run that trained one.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Pictures or prompts by their path, or the data as in a recipe: digits. Default: none."),
    ] = None,
    objective: Annotated[str | None, typer.Option(help=f"The objective. Default: {OBJECTIVE}.")] = None,
    gpus: Annotated[int | None, typer.Option(help="The number of GPUs, or of processes on CPUs. Default: 1.")] = None,
    batch: Annotated[
        int | None, typer.Option(help=f"The batch on all of them together. Default: {BATCH_A_GPU} on each.", min=1)
    ] = None,
    name: Annotated[str | None, typer.Option(help="The name of the run. Default: TEACHER_OBJECTIVE.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: what is left out takes its default.")] = False,
    out: Annotated[Path | None, typer.Option(help="The file to write. Default: NAME.yaml.")] = None,
) -> None:
    """Write a commented recipe for a teacher, after a question for each of the first options that is left out."""
    from trainers.io.atomic import atomic_file
    from trainers.io.console import plain
    from trainers.recipe.commented import commented_yaml
    from trainers.recipe.load import resolve

    if teacher is None and yes:
        raise UserError("--teacher: has no default; name the folder of a teacher")
    teacher = teacher or _ask("The teacher's folder")
    data = _answer("Pictures or prompts, by their path, or none", data, "none", yes)
    objective = _answer("The objective (docs/objectives/README.md lists them)", objective, OBJECTIVE, yes)
    gpus = _answer("The number of GPUs", gpus, 1, yes)
    if gpus < 1:
        raise UserError(f"--gpus: must be at least 1, got {gpus}")
    batch = batch or _answer("The batch on all GPUs together", None, BATCH_A_GPU * gpus, yes)
    settings = first_settings(teacher, None if data == "none" else data, objective, gpus, batch)
    if name is not None:
        settings["name"] = name
        resolve(settings)  # refuses what is no name
    out = out or Path(f"{settings['name']}.yaml")
    if out.exists():
        raise UserError(f"--out: '{out}' exists already; name another file")
    text = commented_yaml(settings, f"From `distill init --gpus {gpus}`. `distill keys` explains all other keys.")
    with atomic_file(out) as staging:
        staging.write_text(text, encoding="utf-8")
    file = shlex.quote(str(out))
    plain().print(f"{out}: next `distill plan {file} --gpus {gpus}` or `distill train {file} --processes {gpus}`")


def first_settings(teacher: str, data: str | None, objective: str, gpus: int, batch: int) -> dict[str, Any]:
    """Return the keys of a recipe for a teacher, after they were checked together.

    Args:
        teacher: The folder of the teacher, or the run that trained it.
        data: The data, by their path or as in a recipe. None for no images.
        objective: The name of the objective.
        gpus: The number of GPUs.
        batch: The global batch.

    Raises:
        UserError: Something is missing or does not fit.
    """
    from trainers.probe.starting import starting_recipe
    from trainers.recipe.keys import short_value
    from trainers.recipe.load import resolve
    from trainers.runs.open import open_run

    start = starting_recipe(Path(teacher), data, objective)
    settings: dict[str, Any] = {
        "name": start.name,
        "teacher": start.teacher,
        "data": short_value(start.data),
        "objective": {"name": objective},
        "images": IMAGES,
        "batch_size": batch,
        "generator": {"lr": RATE},
        "fake": {"lr": RATE},
    }
    open_run(resolve(settings), gpus, weights=False)
    return settings


def _answer(question: str, given: _T | None, default: _T, yes: bool) -> _T:
    """Return what an option gives, or else the default if `yes`, or else the answer to a question."""
    if given is not None:
        return given
    return default if yes else _ask(question, default)


def _ask(question: str, default: Any = None) -> Any:
    """Return the answer to a question, of the type of the default. Raise UserError where no answer comes."""
    try:
        return typer.prompt(question, default=default, type=None if default is None else type(default))
    except typer.Abort:
        raise UserError(
            f"init: '{question}' has no answer; give it as an option, or take the defaults with --yes"
        ) from None
