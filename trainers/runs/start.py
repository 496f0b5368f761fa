"""The run whose generator another run starts as (`start` of a recipe)."""

from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.generator import Generator
from distill.lora import Lora
from trainers.checkpoints import checkpoint
from trainers.checkpoints.formats import read_best
from trainers.engine.player import frozen_names
from trainers.io.teacher_hash import is_hash_of
from trainers.recipe.load import RUN_FILE
from trainers.recipe.run import GeneratorInput, Run
from trainers.recipe.strict_yaml import build, dump, load_yaml


def check_start(start: str, run: Run, generator: Generator) -> None:
    """Check that `load_start` can load, by names and shapes alone.

    Args:
        start: A run folder, or best/ in it.
        run: The run that starts from it.
        generator: The generator of `run`, which may be on the meta device.

    Raises:
        UserError: `start` holds no generator, or one with another network, entry or adapters than the run's.
    """
    source = _find_generator(start, run)
    if run.generator.lora is None:
        try:
            checkpoint.check_average(source, generator)
        except RuntimeError as error:
            raise UserError(f"start: the generator in '{source}' is not of the teacher's architecture") from error


def load_start(start: str, run: Run, generator: Generator, teacher_hash: str) -> None:
    """Load the averaged generator of another run, in place.

    Args:
        start: A run folder, for its newest valid checkpoint, or best/ in it.
        run: The run that starts from it.
        generator: The generator to load into.
        teacher_hash: The hash of the run's teacher.

    Raises:
        UserError: As for `check_start`. Or the adapters were trained on another teacher.
    """
    source = _find_generator(start, run)
    if run.generator.lora is not None:  # adapters are changes to the weights of one teacher, and useless on another
        best = source.name == "best"
        description = _description(source, best)
        if not is_hash_of(description["teacher"], run.teacher, teacher_hash):
            root = source.parent if best else source.parent.parent
            raise UserError(f"start: the adapters of '{root}' are of another teacher than '{run.teacher}'")
    try:
        checkpoint.load_average(source, generator, frozen_names(generator))
    except RuntimeError as error:
        raise UserError(f"start: the generator in '{source}' is not of the teacher's architecture") from error


def _description(source: Path, best: bool) -> dict[str, Any]:
    """Return the description of averaged weights, in best/ or in a checkpoint."""
    try:
        return read_best(source) if best else checkpoint.read_state(source)
    except FileNotFoundError as error:
        raise UserError(f"start: '{source}' has no {Path(error.filename).name}") from error


def _find_generator(start: str, run: Run) -> Path:
    """Return the folder with the averaged weights. Raise UserError if their run has another entry or other adapters."""
    folder = Path(start)
    best = folder.name == "best"
    root = folder.parent if best else folder
    if not (root / RUN_FILE).is_file():
        raise UserError(f"start: '{root}' is not a run folder: it has no {RUN_FILE}")
    recipe = load_yaml(root / RUN_FILE)
    theirs, settings = recipe.get("entry"), recipe.get("generator") or {}
    if not isinstance(settings, dict):
        raise UserError(f"start: generator in '{root / RUN_FILE}' must be a mapping, got {settings!r:.60}")
    adapters = settings.get("lora")
    if theirs is None or build(GeneratorInput, theirs, str(root)) != run.entry:
        raise UserError(f"start: the generator of '{root}' has entry {theirs}, this recipe has {dump(run.entry)}")
    if (None if adapters is None else build(Lora, adapters, str(root))) != run.generator.lora:
        ours = dump(run.generator)["lora"]
        raise UserError(f"start: the generator of '{root}' has lora {adapters}, this recipe has {ours}")
    return folder if best else checkpoint.newest(root / "checkpoints", need=(checkpoint.AVERAGE_STEM,))[0]
