"""A cache of computed tables on disk: embeddings of prompts, latents of images.

A table is a folder whose name is a hash of the origin of its rows: the encoder, the data, the sizes. Its shards are
safetensors files, which are mapped into memory and not read. The receipt of a shard (size, time, SHA-256) is written
after the shard. A shard that does not match its receipt is computed again. Processes that need the same table divide
the work by a lock for each shard, which the system releases when its process ends.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import with_config
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError
from torch import Tensor
from typing_extensions import TypedDict

from distill.errors import UserError
from distill.records import STRICT, Count, read_record
from distill.saved_files import load_tensors, tensor_bytes
from trainers.data.shards import Table, has_rows
from trainers.io.atomic import atomic_file, sha256

DEFAULT_CACHE = "~/.cache/distill"


@with_config(STRICT)
class Receipt(TypedDict):
    """The receipt of a shard: its size in bytes, its time of change in nanoseconds, and its hash."""

    bytes: Count
    time: int
    sha256: str


Make = Callable[[int, int], Mapping[str, Tensor]]
"""(first, last) -> {column: its rows first ... last-1, [N, ...]}."""


@dataclass(frozen=True)
class Cache:
    """A cache.

    Attributes:
        root: The folder of all tables.
        console: Where progress is printed.
    """

    root: Path
    console: Console

    def table(
        self,
        what: str,
        origin: Mapping[str, Any],
        count: int,
        length: int,
        make: Make,
        full: Mapping[str, Tensor] | None = None,
    ) -> Table:
        """Return a table, and compute the shards that are missing.

        Processes that ask for the same table divide the missing shards among them, and return when all are there.

        Args:
            what: The kind of table, in the path and in messages: "text", "latents".
            origin: All that the rows are a function of, as plain types. Its hash names the table.
            count: The number of rows.
            length: The number of rows of a shard.
            make: Computes rows. It is called for missing shards alone.
            full: One row [1, ...] in full, where `make` returns trimmed rows. Otherwise None.
        """
        description = {**origin, "count": count, "shard": length}
        text = json.dumps(description, sort_keys=True)
        folder = self.root / what / hashlib.sha256(text.encode()).hexdigest()[:32]
        starts = range(0, count, length)
        files = {folder / f"{first // length:06d}.safetensors": (first, min(first + length, count)) for first in starts}
        if missing := {file: span for file, span in files.items() if not is_intact(file, span[1] - span[0])}:
            folder.mkdir(parents=True, exist_ok=True)
            _write_origin(folder, json.dumps(description, indent=2) + "\n")
            no_bar = not self.console.is_terminal
            for rest in track(_fill(missing, make), what, len(missing), console=self.console, disable=no_bar):
                if no_bar:
                    self.console.print(f"{what}: {count - rest:,} of {count:,}")
        return Table(count, tuple(load_tensors(file) for file in files), folder, full)


def _write_origin(folder: Path, text: str) -> None:
    """Write origin.json unless it is there: a process that came later and was killed would leave a half-written one."""
    file = folder / "origin.json"
    with FileLock(file.with_suffix(".lock")):
        if not file.is_file() or file.read_bytes() != text.encode():
            with atomic_file(file) as staging:
                staging.write_text(text)


def _fill(missing: Mapping[Path, tuple[int, int]], make: Make) -> Iterator[int]:
    """Write the missing shards, and yield after each the number of rows that are still missing.

    Shards locked by another process are skipped at first and waited for at the end. If that process died, they are
    computed here.

    Args:
        missing: {file of a shard: (its first row, the row after its last)}.
        make: Computes rows.
    """
    open_shards = dict(missing)
    for wait in (False, True):
        for file, (first, last) in list(open_shards.items()):
            try:
                with FileLock(file.with_suffix(".lock"), blocking=wait):
                    if not is_intact(file, last - first):  # another process may have written it since
                        _write(file, make(first, last))
            except Timeout:
                continue
            del open_shards[file]
            yield sum(end - start for start, end in open_shards.values())


def _write(file: Path, columns: Mapping[str, Tensor]) -> None:
    """Write a shard, then its receipt, so that a shard without a receipt is one that a kill cut short."""
    with atomic_file(file) as staging:
        staging.write_bytes(tensor_bytes(columns))
    stat = file.stat()
    receipt = {"bytes": stat.st_size, "time": stat.st_mtime_ns, "sha256": sha256(file)}
    with atomic_file(receipt_of(file)) as staging:
        staging.write_text(json.dumps(receipt) + "\n")


def receipt_of(file: Path) -> Path:
    """Return the file of the receipt of a shard."""
    return file.with_suffix(".json")


def is_intact(file: Path, rows: int) -> bool:
    """Return whether a shard matches its receipt, by size and time, or by size and hash if the time differs.

    Args:
        file: The shard.
        rows: The number of its rows.
    """
    try:
        receipt, stat = read_record(receipt_of(file), Receipt), file.stat()
        # The time spares the hash: a shard that was copied to another disk is read once.
        if stat.st_size != receipt["bytes"] or (
            stat.st_mtime_ns != receipt["time"] and sha256(file) != receipt["sha256"]
        ):
            return False
        return has_rows(load_tensors(file), rows)
    except (OSError, UserError, SafetensorError):
        return False
