"""Tables on disk that follow from what they were computed from: text embeddings, latents of images.

A table is a folder named by a hash of its content's origin. Its shards, safetensors files, are mapped into memory and
not read. Each has a receipt (size, time, SHA-256), written after it; one that does not match is computed again. A lock
for each shard shares the work among the processes that want the table, and outlives none of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainers.data.shards import rows
from trainers.io.atomic import atomic_file, sha256

HOME = "~/.cache/distill"

Make = Callable[[int, int], Mapping[str, Tensor]]
"""(first, last) -> rows first ... last-1 of every column, [N, ...]."""


@dataclass(frozen=True)
class Cache:
    """The folder of all tables, and where progress is told."""

    root: Path
    console: Console

    def table(self, what: str, origin: Mapping[str, Any], count: int, length: int, make: Make) -> Table:
        """The table of `count` rows that follows from `origin` (plain types), in shards of `length`.

        `make` is called for the shards that are not there alone. Processes that ask for the same table share them out
        and return when all are there.
        """
        description = {**origin, "count": count, "shard": length}
        text = json.dumps(description, sort_keys=True)
        folder = self.root / what / hashlib.sha256(text.encode()).hexdigest()[:32]
        starts = range(0, count, length)
        files = {folder / f"{first // length:06d}.safetensors": (first, min(first + length, count)) for first in starts}
        if missing := {file: span for file, span in files.items() if not intact(file)}:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "origin.lock"), atomic_file(folder / "origin.json") as staging:
                staging.write_text(json.dumps(description, indent=2) + "\n")
            quiet, told = not self.console.is_terminal, f"{what}: "
            for done in track(_fill(missing, make), what, len(missing), console=self.console, disable=quiet):
                if quiet:
                    self.console.print(f"{told}{count - done:,} of {count:,}")
        return Table(count, tuple(load_file(file) for file in files))


@dataclass(frozen=True)
class Table:
    """`count` rows in shards."""

    count: int
    shards: tuple[Mapping[str, Tensor], ...]

    def rows(self, positions: Tensor, *names: str) -> dict[str, Tensor]:
        """Rows [B, ...] of the named columns, or of all, at int64 positions [B]."""
        return rows(self.shards, positions, *names)


def _fill(missing: Mapping[Path, tuple[int, int]], make: Make) -> Iterator[int]:
    """Write what is missing; yields after each shard how many rows are still missing.

    What another process is at is left for the end, and then waited for: it is there, or that process has died.
    """
    left = dict(missing)
    for wait in (False, True):
        for file, (first, last) in list(left.items()):
            try:
                with FileLock(file.with_suffix(".lock"), blocking=wait):
                    if not intact(file):
                        _write(file, make(first, last))
            except Timeout:
                continue
            del left[file]
            yield sum(end - start for start, end in left.values())


def _write(file: Path, columns: Mapping[str, Tensor]) -> None:
    with atomic_file(file) as staging:
        save_file({name: value.detach().cpu().contiguous() for name, value in columns.items()}, staging)
    stat = file.stat()
    receipt = {"bytes": stat.st_size, "time": stat.st_mtime_ns, "sha256": sha256(file)}
    with atomic_file(receipt_of(file)) as staging:
        staging.write_text(json.dumps(receipt) + "\n")


def receipt_of(file: Path) -> Path:
    """Where the receipt of a shard is."""
    return file.with_suffix(".json")


def intact(file: Path) -> bool:
    """Whether a shard is what its receipt says: untouched since it was written, or else of the same hash."""
    try:
        receipt, stat = json.loads(receipt_of(file).read_text()), file.stat()
        if stat.st_size != receipt["bytes"]:
            return False
        return bool(stat.st_mtime_ns == receipt["time"]) or sha256(file) == receipt["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
