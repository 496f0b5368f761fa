"""distill try: a recipe in its tiny form, from the teacher to the use of the export."""

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
    from trainers.runs.open import open_run

    with timed("make teacher and data"):
        run = resolve_recipe(recipe, overrides, tiny=folder)
    with timed("load and check"):
        opened = open_run(run, 1)
    with timed("cache and train") as note:
        fit(opened, folder, start_accelerator(run, folder))
        note(f"{run.images // run.batch_size} updates")
    with timed("sample"):
        trained = trainers.load(folder)
        trainers.grid(trained.sample(SAMPLES), SAMPLES).save(folder / "sample.png")
    with timed("export") as note:
        note(f"differs by {trained.export():.1e} from the trainer's")
    with timed("use the export without this package") as note:
        note(f"{use_export(folder / 'export')} samples")


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
