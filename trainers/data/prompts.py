"""Prompts from a file, a folder or a hub's data set."""

from __future__ import annotations

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
"""By the ending of a file: the builder of `datasets` that reads it, and its arguments."""


@dataclass(frozen=True)
class Prompts(Data):
    """Prompts without images, for objectives that need none; their samples have the shape of the teacher's.

    `path` is a text file of one prompt a line (empty lines are left out), a csv, tsv, json, jsonl or parquet file, a
    glob of such, a folder of them, one that `save_to_disk` wrote, or a hub id.
    """

    path: str
    column: str | None = None  # null: the only column of strings
    split: str = "train"
    config: str | None = None
    limit: int | None = None  # the first so many

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit: must be positive, got {self.limit}")

    def load(self) -> Dataset:
        rows = open_rows(self.path, self.split, self.config)
        if self.limit is not None:
            rows = rows.select(range(min(self.limit, len(rows))))
        prompts = strings(rows, self.column or _only(rows, self.path), self.path, "data.column")
        if self.path.endswith(".txt"):
            prompts = [prompt for prompt in prompts if prompt.strip()]
        if not prompts:
            raise UserError(f"data: '{self.path}' holds no prompts")
        return Dataset(Path(self.path).name, len(prompts), UNKNOWN, None, None, prompts=prompts)


def open_rows(path: str, split: str, config: str | None, folder: str | None = None) -> Any:
    """The datasets.Dataset at `path`; `folder` is the builder of folders without parquet files, where not `datasets` is
    to find it. Raises UserError where there is none.
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
    except Exception as error:  # datasets raises a dozen kinds; the user needs the line, not the kind
        raise UserError(f"data: cannot load '{path}': {one_line(error)}") from error


def strings(rows: Any, column: str, path: str, key: str) -> Sequence[str]:
    """The strings in a column; raises UserError, naming `key`, where it is missing or holds anything else."""
    if column not in rows.column_names:
        raise UserError(f"{key}: no column {column!r} in {path}; it has {rows.column_names}")
    values: Sequence[str] = rows[column][:]
    if wrong := [number for number, value in enumerate(values) if not isinstance(value, str)]:
        found = values[wrong[0]]
        raise UserError(f"{key}: {column!r} in {path} must hold strings; row {wrong[0]} holds {found!r}"[:300])
    return values


def _only(rows: Any, path: str) -> str:
    texts: list[str] = [
        name for name, feature in rows.features.items() if getattr(feature, "dtype", "") in ("string", "large_string")
    ]
    if len(texts) != 1:
        raise UserError(f"data.column: name the column of prompts in {path}; it has {rows.column_names}")
    return texts[0]
