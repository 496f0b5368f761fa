"""distill recipes: the shipped recipes."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe.")] = None,
    table: Annotated[
        bool, typer.Option("--table", help="Print the papers' recipes as the table of docs/recipes.md.")
    ] = False,
) -> None:
    """List the shipped recipes, or print one."""
    from trainers.io.console import plain
    from trainers.recipe.shipped import find_recipe, shipped_recipes
    from trainers.recipe.yaml_text import read_text

    console = plain()
    if table:
        console.print(markdown())
        return
    if name is not None:
        console.print(read_text(find_recipe(name)), end="")
        return
    for title, file in shipped_recipes().items():
        first = file.read_text().splitlines()[0].lstrip("# ")
        console.print(f"{title:28} {first}")


def markdown() -> str:
    """Return a table of the papers' recipes, which are those with a tiny form, as Markdown."""
    from trainers.recipe.shipped import RECIPES, shipped_recipes
    from trainers.recipe.strict_yaml import load_yaml

    rows = ["| recipe | | objective | teacher's family | `distill import` of | data |", "| --- " * 6 + "|"]
    for name, file in shipped_recipes().items():
        recipe, text = load_yaml(file), file.read_text()
        if "tiny" in recipe:
            ((title, arxiv),) = re.findall(r"# (.*) in one step .*?(arXiv:[\d.]+)", text)
            place = file.relative_to(RECIPES)
            cells = [f"[`{name}`](../configs/{place})", f"{title}, {arxiv}", _objective(recipe["objective"])]
            rows.append(f"| {' | '.join([*cells, *_teacher(text), _data(recipe)])} |")
    return "\n".join(rows)


def _objective(settings: dict[str, Any]) -> str:
    """Return the name of an objective, with the one that it wraps in parentheses: guided(sid)."""
    inner = settings.get("objective")
    return settings["name"] if inner is None else f"{settings['name']}({_objective(inner)})"


def _teacher(text: str) -> tuple[str, str]:
    """Return the family of the teacher, and the source that `distill import` takes."""
    kind, source = re.findall(r"distill import (\w+) (\S+)", text)[0]
    return {"edm": "EDM", "edm2": "EDM2"}.get(kind, "diffusers"), f"`{source}`"


def _data(recipe: dict[str, Any]) -> str:
    """Return the data that the user needs beside the teacher."""
    data, start = recipe["data"], recipe.get("start")
    kind = {"data_free": "none"}.get(data["name"], data["name"]) + (" with prompts" if "prompt_column" in data else "")
    return kind if start is None else f"{kind}; after `{Path(start).name}`"
