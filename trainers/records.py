"""JSON Lines files of a run: one object a line, each with its `images`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def append(file: Path, record: dict[str, Any]) -> None:
    """Add one line."""
    with file.open("a") as stream:
        stream.write(json.dumps(record) + "\n")


def read(file: Path) -> list[dict[str, Any]]:
    """Every whole line; a last line that was cut off by a kill is dropped."""
    records = []
    if file.is_file():
        for line in file.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
    return records


def rewind(file: Path, images: int) -> None:
    """Drop the lines after `images`: a resumed run writes them again."""
    if file.is_file():
        kept = [json.dumps(record) + "\n" for record in read(file) if record["images"] <= images]
        staging = file.with_name(f".{file.name}.staging")
        staging.write_text("".join(kept))
        os.replace(staging, file)
