"""distill recipes: what is shipped."""

from __future__ import annotations

import difflib
import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from distill.errors import UserError
from trainers.io.console import plain
from trainers.recipe.strict_yaml import load_yaml


def shipped() -> dict[str, Path]:
    """Recipe files of the package by name."""
    folder = Path(str(files("configs")))
    return {file.stem: file for file in sorted(folder.rglob("*.yaml"), key=lambda file: file.stem)}


def find_recipe(recipe: str) -> Path:
    """The file of a recipe: a path, or the name of a shipped one."""
    if Path(recipe).is_file():
        return Path(recipe)
    names = shipped()
    if recipe not in names:
        near = difflib.get_close_matches(recipe, names, 1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise UserError(f"recipe: no file and no shipped recipe '{recipe}'{hint}; shipped: {', '.join(names)}")
    return names[recipe]


def recipes(
    name: Annotated[str | None, typer.Argument(help="print this recipe")] = None,
    table: Annotated[bool, typer.Option("--table", help="the papers' recipes as the table of docs/recipes.md")] = False,
) -> None:
    """List the shipped recipes, or print one."""
    console = plain()
    if table:
        console.print(markdown())
        return
    if name is not None:
        console.print(find_recipe(name).read_text(), end="")
        return
    for title, file in shipped().items():
        first = file.read_text().splitlines()[0].lstrip("# ")
        console.print(f"{title:28} {first}")


def markdown() -> str:
    """A table of the recipes that --tiny can walk, which are the papers'."""
    rows = ["| recipe | | objective | teacher's family | `distill import` of | data |", "| --- " * 6 + "|"]
    for name, file in shipped().items():
        recipe, text = load_yaml(file), file.read_text()
        if "tiny" in recipe:
            ((title, arxiv),) = re.findall(r"# (.*) in one step .*?(arXiv:[\d.]+)", text)
            place = file.relative_to(Path(str(files("configs"))))
            cells = [f"[`{name}`](../configs/{place})", f"{title}, {arxiv}", _objective(recipe["objective"])]
            rows.append(f"| {' | '.join([*cells, *_teacher(text), _data(recipe)])} |")
    return "\n".join(rows)


def _objective(settings: dict[str, Any]) -> str:
    """Names from the outside in: guided(sid)."""
    inner = settings.get("objective")
    return settings["name"] if inner is None else f"{settings['name']}({_objective(inner)})"


def _teacher(text: str) -> tuple[str, str]:
    """Its family, and what `distill import` takes."""
    kind, source = re.findall(r"distill import (\w+) (\S+)", text)[0]
    return {"edm": "EDM", "edm2": "EDM2"}.get(kind, "diffusers"), f"`{source}`"


def _data(recipe: dict[str, Any]) -> str:
    """What the user brings beside the teacher."""
    data, start = recipe["data"], recipe.get("start")
    kind = {"data_free": "none"}.get(data["name"], data["name"]) + (" with prompts" if "prompt_column" in data else "")
    return kind if start is None else f"{kind}; after `{Path(start).name}`"
