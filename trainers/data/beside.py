"""Files that belong to pictures by their names: captions in .txt, and WebDataset's .cls and .json."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from distill.errors import UserError, one_line
from distill.public_text import printable
from trainers.data.pictures import Tree
from trainers.data.pixels import Damaged

_COLUMNS = {"txt": "text", "cls": "label"}
"""{ending of a file: the column of its content}. A .json file has a column for each key."""
Columns = dict[str, Callable[[], Sequence[Any]] | None]


def columns_beside(tree: Tree, names: Sequence[str], pictures: Sequence[str]) -> tuple[Columns, list[str]]:
    """Return the columns of the files that belong to pictures, and the names of these files.

    They are read when the column is. The keys of .json files are those of the first one.

    Args:
        tree: The folder, or the archive.
        names: The files in it.
        pictures: Those that are pictures.

    Raises:
        UserError: A .json file is damaged.
    """
    keys = {tree.key(name)[0] for name in pictures}
    files: dict[str, dict[str, str]] = {}
    for name in names:
        key, ending = tree.key(name)
        if ending in tree.beside and key in keys:
            files.setdefault(ending, {})[key] = name
    columns: Columns = {}
    if "json" in files:
        for column in _content(tree, next(iter(files["json"].values())), "json"):
            columns[column] = partial(_values, tree, files["json"], pictures, "json", column)
    for ending in files.keys() & _COLUMNS.keys():
        columns[_COLUMNS[ending]] = partial(_values, tree, files[ending], pictures, ending, None)
    return columns, [name for part in files.values() for name in part.values()]


def _values(
    tree: Tree, files: Mapping[str, str], pictures: Sequence[str], ending: str, column: str | None
) -> list[Any]:
    """Return the values of a column, of each picture. Raise UserError where a picture has none."""
    keys = [tree.key(name)[0] for name in pictures]
    if missing := [name for name, key in zip(pictures, keys, strict=True) if key not in files]:
        raise UserError(
            f"data: {len(missing):,} of {len(pictures):,} pictures in '{tree.root}' have no .{ending} beside them, such"
            f" as {printable(missing[0], 200)}"
        )
    contents = (_content(tree, files[key], ending) for key in keys)
    return [content if column is None else content.get(column) for content in contents]


def _content(tree: Tree, name: str, ending: str) -> Any:
    """Return the content of a file: a caption, a number or the name of a class, or a mapping.

    Raises:
        UserError: It is damaged, or not in UTF-8.
    """
    try:
        text = tree.read(name).decode("utf-8-sig").strip()
        if ending == "json":
            content = json.loads(text)
            if not isinstance(content, dict):
                raise ValueError("it holds no mapping")
            return content
        return int(text) if ending == "cls" and text.isascii() and text.isdigit() and len(text) < 19 else text
    except (Damaged, ValueError, RecursionError) as error:
        where = printable(f"{tree.root}/{name}", 300)
        raise UserError(f"data: cannot read '{where}': {one_line(error)[:150]}") from error
