"""The JSON Lines files of a run: one object on each line, with its number of `images`."""

import errno
import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.saved_files import open_regular
from trainers.io.atomic import atomic_file

LARGEST = 2**31  # bytes of a file at most
LONGEST = 2**20  # bytes of a line at most; a longer one is no record
TYPICAL = 2**13  # bytes of a line, of which that of a log has a third


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
    """Return the records in a file, or none if there is no file.

    A line that is no object with a number of `images` is skipped, such as one that a kill cut short.
    """
    return [record for record in stream(file) if record is not None]


def number(value: object) -> float | None:
    """Return a value of a record as a number, or None if it is none. An integer beyond all floats is infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def tail(file: Path, count: int) -> list[dict[str, Any]]:
    """Return the last records in a file, or none if there is no file. Of a long file its end alone is read.

    Args:
        file: The file.
        count: The largest number of records. Lines that are no records count.
    """
    if not file.is_file():
        return []
    with open_regular(file) as opened:
        opened.seek(max(0, opened.seek(0, os.SEEK_END) - count * TYPICAL))
        lines = opened.read(count * TYPICAL).split(b"\n")
    found = (_record(line) for line in lines[-count - 1 :])  # after the last line there is an empty one
    return [record for record in found if record is not None]


def rewind(file: Path, images: int) -> None:
    """Remove the lines after `images`, which a resumed run writes again, and the lines that are no records.

    Raises:
        UserError: Something other than a regular file is in the place of the file, or the file is too large for a log.
    """
    if file.is_file():
        with atomic_file(file) as staging, staging.open("w") as output:
            kept = (record for record in stream(file) if record is not None and record["images"] <= images)
            output.writelines(json.dumps(record) + "\n" for record in kept)
    elif os.path.lexists(file):
        raise UserError(f"'{file}' is no regular file, and a run writes there; move it away")


def stream(file: Path) -> Iterator[dict[str, Any] | None]:
    """Yield the record of each line of a file, or None for a line that is no record. No file has no lines.

    Raises:
        UserError: The file is larger than any log.
    """
    if not file.is_file():
        return
    with open_regular(file) as opened:
        if file.stat().st_size > LARGEST:
            raise UserError(f"'{file}' has more than {LARGEST:,} bytes, and is no log; move it away")
        while line := opened.readline(LONGEST):
            yield _record(line)


def _record(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line, or None if it is none."""
    record = None
    with suppress(ValueError, RecursionError):  # no UTF-8, no JSON, or nested too deep
        record = json.loads(line)
    return record if isinstance(record, dict) and type(record.get("images")) is int else None
