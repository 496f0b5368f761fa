"""The prompts of a benchmark, from its published file."""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import StringIO
from itertools import islice
from os.path import expanduser
from pathlib import Path
from typing import Any

from distill.errors import UserError, one_line, options, require
from distill.records import parse_record
from distill.saved_files import read_bounded

# The largest published files have a few hundred thousand prompts, and no encoder reads a thousandth of the longest.
LARGEST_PROMPTS, MOST_PROMPTS, LONGEST_PROMPT = 2**25, 2**19, 2**16  # bytes of a file, prompts, characters of one
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
    place = Path(expanduser(path))
    try:
        found = list(islice(_folder(place) if place.is_dir() else _file(place), MOST_PROMPTS + 1))
    except (OSError, ValueError, csv.Error) as error:  # ValueError: no UTF-8, no JSON
        raise UserError(f"prompts: cannot read '{path}': {one_line(error)}") from error
    require(len(found) <= MOST_PROMPTS, f"prompts: '{path}' holds more than {MOST_PROMPTS:,} prompts")
    if any(len(one.text) > LONGEST_PROMPT for one in found):
        raise UserError(f"prompts: '{path}' holds a prompt of more than {LONGEST_PROMPT:,} characters")
    require(len(found) > 0, f"prompts: '{path}' holds no prompts")
    if "item_id" in found[0].entry:
        return list({one.name: one for one in reversed(found)}.values())[::-1]
    return found


def _folder(place: Path) -> Iterator[BenchmarkPrompt]:
    for file in sorted(place.glob("*.txt")):
        if text := _text(file, 4 * LONGEST_PROMPT).read().strip():
            yield BenchmarkPrompt(text, file.stem)


def _file(file: Path) -> Iterator[BenchmarkPrompt]:
    if file.suffix == ".jsonl":
        for line in _text(file):
            if line.strip():
                yield _entry(file, parse_record(line), line.removesuffix("\n"))
    elif file.suffix in (".tsv", ".csv"):
        rows: Any = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if file.suffix == ".tsv" else {}
        for row in csv.DictReader(_text(file), **rows):
            yield _entry(file, row)
    elif file.suffix == ".txt":
        yield from (BenchmarkPrompt(line.removesuffix("\n")) for line in _text(file) if line.strip())
    else:
        raise UserError(f"prompts: '{file}' must be a folder of .txt, or end in .txt, .jsonl, .tsv or .csv")


def _entry(file: Path, entry: Mapping[str, Any], line: str = "") -> BenchmarkPrompt:
    """Return the prompt of one line."""
    columns = {str(name).lower(): name for name in entry}
    text = next((entry[columns[name]] for name in TEXT_COLUMNS if name in columns), None)
    if not isinstance(text, str) or not text.strip():
        raise UserError(
            f"prompts: '{file}' holds a line without a {' or '.join(TEXT_COLUMNS)}; it has {options(entry)}"
        )
    name = next((entry[columns[name]] for name in NAME_COLUMNS if name in columns), "")
    return BenchmarkPrompt(text, str(name), line, entry)


def _text(file: Path, largest: int = LARGEST_PROMPTS) -> StringIO:
    """Return the text of a file, with its line ends as newlines. Its lines end at these alone, and not at U+2028."""
    return StringIO(read_bounded(file, largest).decode("utf-8-sig").replace("\r\n", "\n"))
