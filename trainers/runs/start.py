"""The run whose averaged generator another run starts from (`start` of a recipe)."""

from __future__ import annotations

import json
from pathlib import Path

from distill.errors import UserError
from distill.generator import Generator
from distill.lora import Lora
from trainers.checkpoints import checkpoint
from trainers.engine.player import frozen_names
from trainers.recipe.load import RUN_FILE
from trainers.recipe.run import GeneratorInput, Run
from trainers.recipe.strict_yaml import build, dump, load_yaml


def check_start(start: str, run: Run, generator: Generator) -> None:
    """Check that `load_start` can work, by names and shapes alone.

    Args:
        start: A run folder, or its best/.
        run: The run that starts from it.
        generator: The generator of `run`; it may be on the meta device.

    Raises:
        UserError: `start` holds no generator, or another network, or one that is asked otherwise than `run` asks its
            own.
    """
    source = _source(start, run)
    if run.generator.lora is None:
        try:
            checkpoint.check_average(source, generator)
        except RuntimeError as error:
            raise UserError(f"start: the generator in '{source}' is not of the teacher's architecture") from error


def load_start(start: str, run: Run, generator: Generator, teacher_hash: str) -> None:
    """Load the averaged generator of a run folder (its newest valid checkpoint), or of its best/, into `generator`.

    Raises:
        UserError: As check_start does; and its adapters belong to another teacher.
    """
    source = _source(start, run)
    if run.generator.lora is not None:  # adapters mean something on their teacher's weights alone
        best = source.name == "best"
        description = json.loads((source / ("metrics.json" if best else "state.json")).read_text())
        if description["teacher"] != teacher_hash:
            root = source.parent if best else source.parent.parent
            raise UserError(f"start: the adapters of '{root}' are of another teacher than '{run.teacher}'")
    try:
        checkpoint.load_average(source, generator, frozen_names(generator))
    except RuntimeError as error:
        raise UserError(f"start: the generator in '{source}' is not of the teacher's architecture") from error


def _source(start: str, run: Run) -> Path:
    """Return the folder with the averaged weights; raises UserError when it was asked otherwise than `run` asks."""
    folder = Path(start)
    best = folder.name == "best"
    root = folder.parent if best else folder
    if not (root / RUN_FILE).is_file():
        raise UserError(f"start: '{root}' is not a run folder: it has no {RUN_FILE}")
    recipe = load_yaml(root / RUN_FILE)
    theirs, adapters = recipe.get("entry"), (recipe.get("generator") or {}).get("lora")
    if theirs is None or build(GeneratorInput, theirs, str(root)) != run.entry:
        raise UserError(f"start: the generator of '{root}' has entry {theirs}, this recipe has {dump(run.entry)}")
    if (None if adapters is None else build(Lora, adapters, str(root))) != run.generator.lora:
        ours = dump(run.generator)["lora"]
        raise UserError(f"start: the generator of '{root}' has lora {adapters}, this recipe has {ours}")
    return folder if best else checkpoint.newest(root / "checkpoints", need=(checkpoint.AVERAGE_STEM,))[0]
