"""The prompts of a benchmark, from its published file."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.errors import UserError, one_line, options, require
from distill.saved_files import read_bounded

LARGEST_PROMPTS = 2**28  # bytes of a file at most
TEXT_COLUMNS = ("prompt", "prompts", "text", "caption")  # in any case
NAME_COLUMNS = ("id", "item_id")  # of DPG-Bench


@dataclass(frozen=True)
class BenchmarkPrompt:
    """One prompt of a benchmark.

    Attributes:
        text: The prompt.
        name: The name that the benchmark gives it, or "" where it gives none.
        line: The line of the file, where it is JSON.
        entry: The columns of the file.
    """

    text: str
    name: str = ""
    line: str = ""
    entry: Mapping[str, Any] = field(default_factory=dict)


def read_prompts(path: str | Path) -> list[BenchmarkPrompt]:
    """Read the prompts of a benchmark, in their order.

    Args:
        path: A text file with one prompt on a line; a .jsonl, .tsv or .csv file, one of whose columns is named prompt,
            prompts, text or caption; or a folder of text files, each of which is the prompt of its name. A column id
            names the prompts. So does a column item_id, whose names come again for each question of dpg_bench.csv.

    Raises:
        UserError: There is no such file, it is damaged, or it holds no prompts.
    """
    place = Path(path).expanduser()
    try:
        found = list(_folder(place) if place.is_dir() else _file(place))
    except (OSError, ValueError, csv.Error) as error:  # ValueError: no UTF-8, no JSON
        raise UserError(f"prompts: cannot read '{path}': {one_line(error)}") from error
    require(len(found) > 0, f"prompts: '{path}' holds no prompts")
    if "item_id" in found[0].entry:
        return list({one.name: one for one in reversed(found)}.values())[::-1]
    return found


def _folder(place: Path) -> Iterator[BenchmarkPrompt]:
    for file in sorted(place.glob("*.txt")):
        if text := _text(file).strip():
            yield BenchmarkPrompt(text, file.stem)


def _file(file: Path) -> Iterator[BenchmarkPrompt]:
    if file.suffix == ".jsonl":
        for line in _text(file).splitlines():
            if line.strip():
                yield _entry(file, json.loads(line), line)
    elif file.suffix in (".tsv", ".csv"):
        rows: Any = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if file.suffix == ".tsv" else {}
        for row in csv.DictReader(_text(file).splitlines(keepends=True), **rows):
            yield _entry(file, row)
    elif file.suffix == ".txt":
        yield from (BenchmarkPrompt(line) for line in _text(file).split("\n") if line.strip())
    else:
        raise UserError(f"prompts: '{file}' must be a folder of .txt, or end in .txt, .jsonl, .tsv or .csv")


def _entry(file: Path, entry: Any, line: str = "") -> BenchmarkPrompt:
    """Return the prompt of one line."""
    require(isinstance(entry, dict), f"prompts: '{file}' holds a line that is no object")
    columns = {str(name).lower(): name for name in entry}
    text = next((entry[columns[name]] for name in TEXT_COLUMNS if name in columns), None)
    if not isinstance(text, str) or not text.strip():
        raise UserError(
            f"prompts: '{file}' holds a line without a {' or '.join(TEXT_COLUMNS)}; it has {options(entry)}"
        )
    name = next((entry[columns[name]] for name in NAME_COLUMNS if name in columns), "")
    return BenchmarkPrompt(text, str(name), line, entry)


def _text(file: Path) -> str:
    """Return the text of a file, with its line ends as newlines."""
    return read_bounded(file, LARGEST_PROMPTS).decode("utf-8-sig").replace("\r\n", "\n")
