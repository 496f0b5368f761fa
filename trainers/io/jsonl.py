"""The JSON Lines files of a run: one object on each line, with its number of `images`."""

import errno
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainers.io.atomic import atomic_file


def append(file: Path, record: dict[str, Any]) -> None:
    """Append one line, or nothing if the disk is full.

    Raises:
        OSError: The line could not be written. The file is as it was.
    """
    with file.open("ab", buffering=0) as stream:
        size, line = stream.seek(0, os.SEEK_END), (json.dumps(record) + "\n").encode()
        try:
            if stream.write(line) < len(line):  # a full disk may take the first half of a line without an error
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        except OSError:
            os.truncate(file, size)
            raise


def read(file: Path) -> list[dict[str, Any]]:
    """Return the objects in a file, or none if there is no file. A line that a kill cut short is skipped."""
    records = []
    if file.is_file():
        for line in file.read_text().splitlines():
            with suppress(ValueError):
                records.append(json.loads(line))
    return records


def rewind(file: Path, images: int) -> None:
    """Remove the lines after `images`, which a resumed run writes again."""
    if file.is_file():
        kept = [json.dumps(record) + "\n" for record in read(file) if record["images"] <= images]
        with atomic_file(file) as staging:
            staging.write_text("".join(kept))
