"""distill try: a recipe's whole path at a tiny size."""

from __future__ import annotations

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
from launch.commands.export import export_product
from launch.commands.sample import draw
from launch.commands.train import Overrides, Recipe, check, check_fresh, resolve
from launch.processes import join_world
from trainers.io.console import plain
from trainers.io.images import grid
from trainers.loop import fit
from trainers.recipe.run import Run
from trainers.runs.load import load_trained

SAMPLES = 4
# Before a card's snippet: an import of ours raises. After it: what it drew.
WITHOUT_US = "import sys\nsys.modules.update(dict.fromkeys(['distill', 'trainers', 'launch']))\n"
COUNT = "\nprint(len(globals().get('images', globals().get('latents'))))\n"


def try_(
    recipe: Recipe,
    overrides: Overrides = None,
    folder: Annotated[Path | None, typer.Option(help="folder to keep it in; nothing is kept when left out")] = None,
) -> None:
    """Walk a recipe's whole path with --tiny, from its teacher to the use of its export, and tell the seconds."""
    if folder is not None:
        check_fresh(folder)
        walk(recipe, overrides or [], folder)
        return
    with TemporaryDirectory(prefix="distill-") as temporary:
        walk(recipe, overrides or [], Path(temporary))


def walk(recipe: str, overrides: list[str], folder: Path) -> None:
    """The steps of `try` in `folder`; raises UserError where one fails."""
    with timed("make teacher and data"):
        run = resolve(recipe, overrides, tiny=folder)
    if not isinstance(run, Run):
        raise UserError(f"{recipe}: this recipe is for `distill teacher`, which has no --tiny")
    with timed("load and check"):
        check(run, 1, fresh=True)
    with timed("cache and train") as note:
        fit(run, folder, join_world(None, run, folder))
        note(f"{run.images // run.batch_size} updates")
    with timed("sample"):
        product = load_trained(folder)
        grid(draw(product, SAMPLES), SAMPLES).save(folder / "sample.png")
    with timed("export") as note:
        note(f"differs by {export_product(product, folder, folder / 'export'):.1e} from the trainer's")
    with timed("use the export without this package") as note:
        note(f"{use_export(folder / 'export')} samples")


@contextmanager
def timed(step: str) -> Iterator[Callable[[str], None]]:
    """Print the seconds of a step and what it noted."""
    notes: list[str] = []
    started = time.perf_counter()
    yield notes.append
    plain().print(f"{step:36}{time.perf_counter() - started:6.1f} s   {' '.join(notes)}".rstrip())


def use_export(folder: Path) -> int:
    """Run the snippet of an export's card beside the folder, in a process of its own that cannot import this package.

    Returns how many samples it drew; raises UserError if it fails.
    """
    snippet = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.DOTALL)
    assert snippet is not None, "every card has one"
    command = [sys.executable, "-c", WITHOUT_US + snippet[1] + COUNT]
    ended = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True)
    if ended.returncode:
        raise UserError(f"export: the snippet in '{folder}/README.md' fails: {ended.stderr.strip().splitlines()[-1]}")
    return int(ended.stdout.split()[-1])
