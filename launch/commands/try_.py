"""distill try: a recipe in its tiny form, from the teacher to the use of the export."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from distill.errors import UserError
from launch.options import Overrides, Recipe, resolve_recipe

SAMPLES = 4
# Code before the snippet of a model card: an import of our packages then raises, since None stands in their place.
WITHOUT_US = "import sys\nsys.modules.update(dict.fromkeys(['distill', 'trainers', 'launch']))\n"
# Code after it: prints the number of samples that the snippet has drawn.
COUNT = "\nprint(len(globals().get('images', globals().get('latents'))))\n"


def try_(
    recipe: Recipe,
    overrides: Overrides = None,
    folder: Annotated[Path | None, typer.Option(help="The run folder to keep. Default: a temporary one.")] = None,
) -> None:
    """Run a recipe in its tiny form, from the teacher to the use of the export, and print the seconds of each step."""
    from trainers.loop import refuse_used

    if folder is not None:
        refuse_used(folder)
        walk(recipe, overrides or [], folder)
        return
    with TemporaryDirectory(prefix="distill-") as temporary:
        walk(recipe, overrides or [], Path(temporary))


def walk(recipe: str, overrides: list[str], folder: Path) -> None:
    """Take the steps of `try`.

    Args:
        recipe: The name of a shipped recipe, or a YAML file.
        overrides: Changes as text: key=value.
        folder: The run folder.

    Raises:
        UserError: A step fails.
    """
    import trainers
    from trainers.engine.world import start_accelerator
    from trainers.loop import fit
    from trainers.recipe.shipped import find_recipe
    from trainers.recipe.strict_yaml import load_yaml
    from trainers.runs.first_try import has_short_form, short_form
    from trainers.runs.open import open_run

    short = has_short_form(recipe)
    if short and load_yaml(find_recipe(recipe)).get("trains") == "classifier":
        try_classifier(recipe, overrides, folder)
        return
    with timed("make teacher and data"):
        run = short_form(recipe, overrides, folder) if short else resolve_recipe(recipe, overrides, tiny=folder)
    with timed("load and check"):
        opened = open_run(run, 1)
    with timed("cache and train") as note:
        fit(opened, folder, start_accelerator(run, folder))
        note(f"{run.images // run.batch_size} updates")
    with timed("sample"):
        trained = trainers.load(folder)
        trainers.grid(trained.sample(SAMPLES), SAMPLES).save(folder / "sample.png")
    if run.trains == "teacher":
        return
    with timed("export") as note:
        note(f"differs by {trained.export():.1e} from the trainer's")
    with timed("use the export without this package") as note:
        note(f"{use_export(folder / 'export')} samples")


def try_classifier(recipe: str, overrides: list[str], folder: Path) -> None:
    """Take the steps of `try` with a recipe that trains a classifier.

    Args:
        recipe: The name of a shipped recipe.
        overrides: Changes as text: key=value.
        folder: The run folder.
    """
    from trainers.recipe.shipped import find_recipe
    from trainers.recipe.strict_yaml import load_yaml
    from trainers.recipe.tiny import BATCH, UPDATES
    from trainers.runs.classifier import resolve_classifier, write_classifier
    from trainers.runs.first_try import short_data

    with timed("make teacher and data"):
        data = short_data(load_yaml(find_recipe(recipe))["data"], folder / "tiny")
        changes = [f"images={BATCH * UPDATES}", f"batch_size={BATCH}", f"data={json.dumps(data)}"]
        run = resolve_classifier(recipe, [*changes, *overrides])
    with timed("cache and train") as note:
        trained, _ = write_classifier(run, folder / "classifier", lambda images, accuracy: None)
        note(f"{run.images // run.batch_size} updates, {trained.accuracy:.0%} right of those held out")


@contextmanager
def timed(step: str) -> Iterator[Callable[[str], None]]:
    """Print the seconds that a step takes, with the notes that it makes by the yielded function."""
    from trainers.io.console import plain

    notes: list[str] = []
    started = time.perf_counter()
    yield notes.append
    plain().print(f"{step:36}{time.perf_counter() - started:6.1f} s   {' '.join(notes)}".rstrip())


def use_export(folder: Path) -> int:
    """Run the snippet of an export's model card, in a process that cannot import this package.

    Args:
        folder: The export. The process runs in the folder around it.

    Returns:
        The number of samples that the snippet has drawn.

    Raises:
        UserError: The snippet fails.
    """
    snippet = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.DOTALL)
    assert snippet is not None, "every card has one"
    command = [sys.executable, "-c", WITHOUT_US + snippet[1] + COUNT]
    ended = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True)
    if ended.returncode:
        raise UserError(f"export: the snippet in '{folder}/README.md' fails: {ended.stderr.strip().splitlines()[-1]}")
    return int(ended.stdout.split()[-1])
