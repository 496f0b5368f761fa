"""Encoded pictures by number, wherever they lie: in files, in an archive, or in the rows of a table."""

import os
import posixpath
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

from trainers.data.pixels import Damaged, check_bytes, read_file


@dataclass(frozen=True)
class Pictures:
    """Encoded pictures with columns beside them.

    Attributes:
        count: The number of pictures.
        read: (number of a picture) -> the content of its file. Raises Damaged.
        name: (number of a picture) -> its name in messages.
        stamp: () -> a hash that changes where the pictures may have changed.
        columns: {name of a column: () -> its values, of each picture}. The column of the pictures has the value None.
        class_names: {name of a column of labels: the names of its classes, by number}.
        left_out: What lies beside the pictures and is not read, in words.
    """

    count: int
    read: Callable[[int], bytes]
    name: Callable[[int], str]
    stamp: Callable[[], str]
    columns: dict[str, Callable[[], Sequence[Any]] | None]
    class_names: dict[str, Sequence[str]] = field(default_factory=dict)
    left_out: Sequence[str] = ()

    @property
    def column_names(self) -> list[str]:
        """The names of the columns."""
        return list(self.columns)

    def __getitem__(self, column: str) -> Sequence[Any]:
        """Return the values of a column."""
        values = self.columns[column]
        return [None] * self.count if values is None else values()

    def select(self, positions: Sequence[int]) -> "Pictures":
        """Return the pictures at some positions, in their order."""

        def part(values: Callable[[], Sequence[Any]]) -> Callable[[], Sequence[Any]]:
            def chosen() -> Sequence[Any]:
                every = values()
                return [every[position] for position in positions]

            return chosen

        return replace(
            self,
            count=len(positions),
            read=lambda number: self.read(positions[number]),
            name=lambda number: self.name(positions[number]),
            stamp=lambda: sha256(f"{self.stamp()} {list(positions)}".encode()).hexdigest(),
            columns={name: values if values is None else part(values) for name, values in self.columns.items()},
        )


@dataclass(frozen=True)
class Tree:
    """The files under a folder, or in a zip archive.

    Attributes:
        root: The folder, or the archive.
        names: Their paths below the root, sorted, with slashes.
        left_out: What is not read, in words.
        empty: The folders below the root without any file.
    """

    root: Path
    names: Sequence[str]
    left_out: Sequence[str] = ()
    empty: Sequence[str] = ()
    kind: ClassVar[str] = "the folder"
    beside: ClassVar[Sequence[str]] = ("txt",)
    """The endings of files that belong to the picture of the same key."""

    def key(self, name: str) -> tuple[str, str]:
        """Return the key of a file, which a picture shares with the files that belong to it, and its ending."""
        key, ending = posixpath.splitext(name)
        return key, ending[1:].lower()

    def inside(self, name: str) -> str:
        """Return the path of a file in the folder or the archive in which it lies, whose folders are classes."""
        return name

    def read(self, name: str) -> bytes:
        """Return the content of a file. Raises Damaged."""
        return read_file(self.root / name)

    def stamp(self, names: Sequence[str]) -> str:
        """Return a hash of the names, sizes and times of files, and of the place where they lie."""
        digest = sha256(f"{self.root.resolve()}\n".encode("utf-8", "surrogateescape"))
        for name in names:
            try:
                status = (self.root / name).stat()
                digest.update(f"{name!r} {status.st_size} {status.st_mtime_ns}\n".encode())
            except OSError:
                digest.update(f"{name!r} missing\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class ZipTree(Tree):
    """The files in a zip archive."""

    lock: Lock = field(default_factory=Lock)
    opened: dict[int, zipfile.ZipFile] = field(default_factory=dict)
    kind: ClassVar[str] = "the archive"

    @property
    def archive(self) -> zipfile.ZipFile:
        """The archive, opened once in each process: forks would share one position in the file."""
        if os.getpid() not in self.opened:
            self.opened[os.getpid()] = zipfile.ZipFile(self.root)
        return self.opened[os.getpid()]

    def read(self, name: str) -> bytes:
        try:
            with self.lock:
                check_bytes(self.archive.getinfo(name).file_size)
                return self.archive.read(name)
        except KeyError:
            raise Damaged("is missing") from None
        except Damaged:
            raise
        except Exception as error:  # a damaged archive raises a dozen kinds
            raise Damaged(f"is damaged in the archive ({error})") from error

    def stamp(self, names: Sequence[str]) -> str:
        status = self.root.stat()
        found = f"{self.root.resolve()} {status.st_size} {status.st_mtime_ns} {list(names)!r}"
        return sha256(found.encode("utf-8", "surrogateescape")).hexdigest()
