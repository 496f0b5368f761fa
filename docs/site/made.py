"""The parts of pages that are made of the code: the commands, the keys, and the papers with their recipes."""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from launch.audit import as_markdown
from launch.commands.demo import RUN, SHIPPED
from launch.commands.recipes import markdown
from launch.main import COMMANDS, app
from trainers.recipe.keys import Key, markdown_of_keys, recipe_keys
from trainers.recipe.shipped import RECIPES, shipped_recipes
from trainers.reports import write_report

REPORT = "demo_report.html"
"""The place in the site of the report of the demo's run."""


def recipes() -> str:
    """Return the list of all shipped recipes, each with the first line of its file."""
    lines = []
    for name, file in shipped_recipes().items():
        place, first = file.relative_to(RECIPES).as_posix(), file.read_text("utf-8").splitlines()[0]
        lines.append(f"| [`{name}`](../configs/{place}) | {first.lstrip('# ')} |")
    return "\n".join(["| recipe | |", "| --- | --- |", *lines])


def papers() -> str:
    """Return a table of the recipes of papers' own experiments, in the order of the papers."""
    objectives = dict(re.findall(r"^\| \[`(\w+)`\]\S+ \| .*? \| (.*?) \|", markdown(), re.MULTILINE))
    rows = []
    for name, objective in objectives.items():
        file = shipped_recipes()[name]
        text = file.read_text("utf-8")
        head = " ".join(line.lstrip("# ") for line in text.partition("\nname:")[0].splitlines())
        ((title, paper, arxiv),) = re.findall(r"^(.*?) in one step with (\S+) .*?arXiv:([\d.]+)\)", head)
        link = f"[`{name}`](../configs/{file.relative_to(RECIPES).as_posix()})"
        cells = (f"{paper}, arXiv:{arxiv}", link, title, f"`{objective}`", *status(head, text))
        rows.append(f"| {' | '.join(cells)} |")
    titles = "| paper | recipe | | objective | published, by the authors | status |"
    in_order = sorted(rows, key=lambda row: row.split("|")[1])
    return "\n".join([titles, "| --- " * 6 + "|", *in_order])


def status(head: str, text: str) -> tuple[str, str]:
    """Return the published result of a recipe, and where its values are from, as its head says them."""
    published = re.search(r"Published: (.*?)\.(?= [A-Z]|$)", head)
    said = re.findall(r"((?:Values|Deviation): .*?\.)(?= [A-Z]|$)", head)
    count = len(re.findall("unverified", text))
    said += [f"`unverified` stands {count} times in the file."] if count > 1 else []
    said += ["`unverified` stands once in the file."] if count == 1 else []
    return published[1] if published else "", " ".join(said)


def audit() -> str:
    """Return the papers' recipes beside the settings that the authors published."""
    return as_markdown()


def report() -> str:
    """Return the sentence that leads to the report of the demo's run, which only the site has."""
    return f"[The report of the demo's run]({REPORT}) is a part of this site."


def report_of_the_demo() -> str:
    """Return the report of the demo's run, as `distill report` writes it."""
    with tempfile.TemporaryDirectory() as folder:
        return write_report(SHIPPED / RUN, Path(folder, REPORT)).read_text("utf-8")


def keys() -> str:
    """Return the keys that are no group in a table, and a table for each group; each objective is a group."""
    groups = defaultdict[str, list[Key]](list)
    for key in recipe_keys():
        parts = key.name.split(".")
        groups[".".join(parts[: 2 if parts[0] == "objective" else 1])].append(key)
    alone = [key for group in groups.values() if len(group) == 1 for key in group]
    sections = [f"## {name}\n\n{markdown_of_keys(group)}" for name, group in groups.items() if len(group) > 1]
    return "\n\n".join(["## Keys without a group", markdown_of_keys(alone), *sections])


def commands() -> str:
    """Return the reference of the `distill` command, in the order of `distill --help`."""
    command: Any = typer.main.get_command(app)
    parts = [re.sub(r"(--[\w=-]+|[A-Z_]{9,}=\d)", r"`\1`", command.epilog)]
    for panel in COMMANDS:
        parts.append(f"## {panel}")
        for name, one in command.commands.items():
            if one.rich_help_panel == panel:
                parts += reference(one, f"distill {name}")
    return "\n\n".join(parts)


def reference(command: Any, name: str) -> Iterator[str]:
    """Yield the parts of the reference of a command, or of each command of a group."""
    if hasattr(command, "commands"):
        for inner, one in command.commands.items():
            yield from reference(one, f"{name} {inner}")
        return
    context = typer.Context(command, info_name=name)
    yield f"### {name}"
    yield " ".join((command.help or "").split())
    yield f"    {command.get_usage(context).removeprefix('Usage: ')}"
    rows = [row(one.get_help_record(context)) for one in command.params if one.name != "help"]
    if rows:
        yield "\n".join(["| | | |", "| --- | --- | --- |", *rows])


def row(record: tuple[str, str]) -> str:
    """Return a parameter as a row: its name, its help, and what `--help` shows in brackets, such as its default."""
    name, text = (part.replace("|", "\\|") for part in record)
    text, _, more = text.partition("  [")
    return f"| `{name}` | {text} | {more.removesuffix(']')} |"
