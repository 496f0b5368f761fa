"""Prompts from a file, a folder, or a data set on the hub."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import UserError, one_line
from trainers.data.dataset import UNKNOWN, Dataset
from trainers.data.source import Data

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".txt": ("text", {"encoding": "utf-8-sig"}),
    ".csv": ("csv", {"encoding": "utf-8-sig", "keep_default_na": False}),  # "None" and "NA" are words
    ".tsv": ("csv", {"encoding": "utf-8-sig", "keep_default_na": False, "sep": "\t", "quoting": csv.QUOTE_NONE}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}
"""{ending of a file: (the builder of `datasets` that reads it, its arguments)}."""


@dataclass(frozen=True)
class Prompts(Data):
    """Prompts without images, for objectives that need no images.

    Attributes:
        path: A text file with one prompt on a line (empty lines are skipped), a csv, tsv, json, jsonl or parquet file,
            a glob of such files, a folder of them, a folder that `save_to_disk` wrote, or an id on the hub.
        column: The column of the prompts. None for the only column of strings.
        split: The split of the data set.
        config: The configuration of a data set on the hub.
        limit: The number of prompts to take, from the first. None for all.
    """

    path: str
    column: str | None = None
    split: str = "train"
    config: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit: must be positive, got {self.limit}")

    def load(self) -> Dataset:
        """Read the prompts. Raises UserError if there are none."""
        rows = open_rows(self.path, self.split, self.config)
        if self.limit is not None:
            rows = rows.select(range(min(self.limit, len(rows))))
        column = self.column or _only_text_column(rows, self.path)
        prompts = text_column(rows, column, self.path, "data.column")
        if self.path.endswith(".txt"):
            prompts = [prompt for prompt in prompts if prompt.strip()]
        if not prompts:
            raise UserError(f"data: '{self.path}' holds no prompts")
        return Dataset(Path(self.path).name, len(prompts), UNKNOWN, None, None, prompts=prompts)


def open_rows(path: str, split: str, config: str | None, folder: str | None = None) -> Any:
    """Open a table by the `datasets` library, and return its datasets.Dataset.

    Args:
        path: A file, a folder, a glob, or an id on the hub.
        split: The split.
        config: The configuration of a data set on the hub.
        folder: The builder for a local folder without parquet files. None lets `datasets` choose one.

    Raises:
        UserError: There is no such table.
    """
    from datasets import load_dataset, load_from_disk

    local = Path(path).expanduser()
    try:
        if local.suffix in FORMATS:
            builder, options = FORMATS[local.suffix]
            return load_dataset(builder, data_files={split: str(local)}, split=split, **options)
        if (local / "state.json").is_file() or (local / "dataset_dict.json").is_file():
            saved = load_from_disk(str(local))
            return saved[split] if isinstance(saved, dict) else saved
        if local.is_file():
            raise UserError(f"data.path: '{path}' must end in one of {', '.join(FORMATS)}, or be a folder or a hub id")
        if folder is not None and local.is_dir() and not any(local.glob("*.parquet")):
            return load_dataset(folder, data_dir=str(local), split=split)
        return load_dataset(str(local) if local.is_dir() else path, config, split=split)
    except UserError:
        raise
    except Exception as error:  # `datasets` raises a dozen kinds, and the user needs the message alone
        raise UserError(f"data: cannot load '{path}': {one_line(error)}") from error


def check_column(rows: Any, column: str, path: str, key: str, hint: str = "") -> None:
    """Raise UserError when a table lacks a column.

    Args:
        rows: A datasets.Dataset.
        column: The name of the column.
        path: The path of the table, for messages.
        key: The key of the recipe that names the column, for messages.
        hint: The end of the message.
    """
    if column not in rows.column_names:
        raise UserError(f"{key}: no column {column!r} in {path}; it has {rows.column_names}{hint}")


def text_column(rows: Any, column: str, path: str, key: str) -> Sequence[str]:
    """Return the strings in a column.

    Args:
        rows: A datasets.Dataset.
        column: The name of the column.
        path: The path of the table, for messages.
        key: The key of the recipe that names the column, for messages.

    Raises:
        UserError: The column is missing, or holds anything else than strings.
    """
    check_column(rows, column, path, key)
    values: Sequence[str] = rows[column][:]
    if wrong := [number for number, value in enumerate(values) if not isinstance(value, str)]:
        found = values[wrong[0]]
        raise UserError(f"{key}: {column!r} in {path} must hold strings; row {wrong[0]} holds {found!r}"[:300])
    return values


def _only_text_column(rows: Any, path: str) -> str:
    """Return the name of the only column of strings."""
    kinds = ("string", "large_string")
    texts: list[str] = [name for name, feature in rows.features.items() if getattr(feature, "dtype", "") in kinds]
    if len(texts) != 1:
        raise UserError(f"data.column: name the column of prompts in {path}; it has {rows.column_names}")
    return texts[0]
