"""distill recipes: what is shipped."""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from distill.errors import UserError
from trainers.console import plain


def shipped() -> dict[str, Path]:
    """Recipe files of the package by name."""
    folder = Path(str(files("configs")))
    return {file.stem: file for file in sorted(folder.rglob("*.yaml"))}


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


def recipes(name: Annotated[str | None, typer.Argument(help="print this recipe")] = None) -> None:
    """List the shipped recipes, or print one."""
    console = plain()
    if name is not None:
        console.print(find_recipe(name).read_text(), end="")
        return
    for title, file in shipped().items():
        first = file.read_text().splitlines()[0].lstrip("# ")
        console.print(f"{title:28} {first}")
