"""distill keys: the keys of a recipe."""

import shutil
import textwrap
from typing import Annotated

import typer


def keys(
    prefix: Annotated[
        str, typer.Argument(help="A dotted key, such as ema, objective.sid or generator.lr. Default: all keys.")
    ] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a table in Markdown.")] = False,
) -> None:
    """Print the keys of a recipe below a prefix, with type, default and meaning."""
    from trainers.io.console import plain
    from trainers.recipe.keys import markdown_of_keys, recipe_keys

    found, console = recipe_keys(prefix), plain()
    if markdown:
        console.print(markdown_of_keys(found))
        return
    width = max(60, min(100, shutil.get_terminal_size().columns))
    for key in found:
        default = f" = {key.default}" if key.default else ""
        console.print(f"{key.name}{default}  [{key.type}]")
        console.print(textwrap.fill(key.meaning, width, initial_indent="    ", subsequent_indent="    "))
