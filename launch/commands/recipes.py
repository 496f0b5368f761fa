"""distill recipes: the shipped recipes."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

HEAD = ("name", "objective", "teacher", "data", "images")
TRIES, TEACHERS = "First tries, which train on a CPU", "Their teachers and classifiers"
PAPERS = {
    "EDM": "Papers, with EDM's teachers",
    "EDM2": "Papers, with EDM2's teachers",
    "diffusers": "Papers, with pipelines of diffusers",
}
"""The titles of the papers' groups, by the family of the teacher."""


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe.")] = None,
    table: Annotated[
        bool, typer.Option("--table", help="Print the papers' recipes as the table of docs/recipes.md.")
    ] = False,
    audit: Annotated[
        bool, typer.Option("--audit", help="Print the papers' recipes, or one, beside the settings of the authors.")
    ] = False,
) -> None:
    """List the shipped recipes, or print one."""
    from trainers.io.console import plain
    from trainers.recipe.shipped import find_recipe
    from trainers.recipe.yaml_text import read_text

    console = plain()
    if table:
        console.print(markdown())
        return
    if audit:
        from launch.audit import as_lines, audited

        for one in audited() if name is None else [name]:
            console.print(*as_lines(one), "", sep="\n")
        return
    if name is not None:
        console.print(read_text(find_recipe(name)), end="")
        return
    for title, rows in grouped().items():
        console.print(f"{title}:")
        widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]
        for row in (HEAD, *rows):
            *cells, images = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            console.print(f"  {'  '.join([*cells, images.strip().rjust(widths[-1])])}")
        console.print()
    console.print("`distill recipes NAME` prints one, with the reasons for its values and what it needs first.")


def grouped() -> dict[str, list[tuple[str, ...]]]:
    """Return the rows of the shipped recipes, with the columns of HEAD, by the title of their group."""
    from trainers.recipe.shipped import shipped_recipes
    from trainers.recipe.strict_yaml import load_yaml

    found: dict[str, list[tuple[str, ...]]] = {title: [] for title in (TRIES, *PAPERS.values(), TEACHERS)}
    for name, file in shipped_recipes().items():
        recipe = load_yaml(file)
        if "tiny" in recipe:
            title = PAPERS[_teacher(file.read_text())[0]]
        else:
            title = TRIES if "objective" in recipe else TEACHERS
        found[title].append(
            (name, _trained(recipe), _teacher_name(recipe), _data(recipe, named=True), f"{recipe['images']:,}")
        )
    return found


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
            cells = [f"[`{name}`](../configs/{place})", f"{title}, {arxiv}", _trained(recipe)]
            rows.append(f"| {' | '.join([*cells, *_teacher(text), _data(recipe)])} |")
    return "\n".join(rows)


def _trained(recipe: dict[str, Any]) -> str:
    """Return the objective of a recipe, or the kind of network that it trains without one."""
    from trainers.recipe.public import nested_name

    if "objective" in recipe:
        given = recipe["objective"]
        return nested_name(given) or str(given)
    return "(a classifier)" if recipe.get("trains") == "classifier" else f"(a teacher, path {recipe['path']})"


def _teacher_name(recipe: dict[str, Any]) -> str:
    """Return the name of the teacher: that of its run, or of its folder."""
    place = Path(recipe.get("teacher", ""))
    return place.parent.name if place.name == "teacher" else place.name


def _teacher(text: str) -> tuple[str, str]:
    """Return the family of the teacher, and the source that `distill import` takes."""
    kind, source = re.findall(r"distill import (\w+) (\S+)", text)[0]
    return {"edm": "EDM", "edm2": "EDM2"}.get(kind, "diffusers"), f"`{source}`"


def _data(recipe: dict[str, Any], named: bool = False) -> str:
    """Return the data that the user needs beside the teacher, with the name of the data set if `named`."""
    data, start = recipe["data"], recipe.get("start")
    data = {"name": data} if isinstance(data, str) else data
    kind = {"data_free": "none"}.get(data["name"], data["name"]) + (" with prompts" if "prompt_column" in data else "")
    if named and "path" in data:
        kind = f"{kind} {Path(data['path']).stem}"
    return kind if start is None else f"{kind}; after `{Path(start).name}`"
