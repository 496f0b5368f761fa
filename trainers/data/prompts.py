"""Prompts from a file, a folder, or a data set on the hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.annotations import LocalPath
from distill.errors import UserError, options
from trainers.data.dataset import UNKNOWN, Dataset
from trainers.data.source import Data
from trainers.data.tables import open_rows, text_column


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

    path: LocalPath
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


def _only_text_column(rows: Any, path: str) -> str:
    """Return the name of the only column of strings."""
    kinds = ("string", "large_string")
    texts: list[str] = [name for name, feature in rows.features.items() if getattr(feature, "dtype", "") in kinds]
    if len(texts) != 1:
        raise UserError(f"data.column: name the column of prompts in {path}; it has {options(rows.column_names)}")
    return texts[0]
