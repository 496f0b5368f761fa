"""JSON Lines files of a run: one object a line, each with its `images`."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from trainers.io.atomic import atomic_file


def append(file: Path, record: dict[str, Any]) -> None:
    """Add one line, or on a full disk none; raises OSError then."""
    with file.open("ab", buffering=0) as stream:
        size, line = stream.seek(0, os.SEEK_END), (json.dumps(record) + "\n").encode()
        try:
            if stream.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        except OSError:
            os.truncate(file, size)
            raise


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
        with atomic_file(file) as staging:
            staging.write_text("".join(kept))
