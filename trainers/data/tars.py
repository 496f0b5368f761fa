"""Tar archives of pictures, such as WebDataset's shards: an index of their headers, and reads at random."""

import glob
import io
import os
import posixpath
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from distill.errors import UserError, one_line
from trainers.data.folders import is_hidden
from trainers.data.pictures import Tree
from trainers.data.pixels import Damaged, check_bytes
from trainers.data.tables import of_split

MAX_HEADER = 2**14  # bytes of a member's name and attributes; Linux has names of at most 4,096
FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
        archive: The archive.
        offset: The place of its first byte.
        size: The number of its bytes.
        name: Its path in the archive.
    """

    archive: Path
    offset: int
    size: int
    name: str


@dataclass(frozen=True)
class TarTree(Tree):
    """The files in tar archives. In one of several, the name of a file begins with that of the archive."""

    members: Mapping[str, Member] = field(default_factory=dict)
    kind: ClassVar[str] = "the archive"
    beside: ClassVar[Sequence[str]] = ("txt", "cls", "json")

    def key(self, name: str) -> tuple[str, str]:
        """Return the path up to the first dot in the last part, and what is behind the dot, as WebDataset does."""
        folder, file = posixpath.split(name)
        key, _, ending = file.partition(".")
        return posixpath.join(folder, key), ending.lower()

    def inside(self, name: str) -> str:
        return self.members[name].name

    def read(self, name: str) -> bytes:
        if (member := self.members.get(name)) is None:
            raise Damaged("is missing")
        check_bytes(member.size)
        try:
            with member.archive.open("rb", buffering=0) as file:  # each time anew: forks would share its position
                file.seek(member.offset)
                return file.read(member.size)
        except OSError as error:
            raise Damaged(f"cannot be read ({error.strerror or error})") from error

    def stamp(self, names: Sequence[str]) -> str:
        digest = sha256(repr(list(names)).encode())
        for archive in dict.fromkeys(member.archive for member in self.members.values()):
            status = archive.stat()
            digest.update(f"{str(archive.resolve())!r} {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def find_tars(place: Path) -> list[Path]:
    """Return the archives that a path names: itself, those of a glob, or those of a folder. None for another path.

    Raises:
        UserError: It names archives, but none that can be read.
    """
    if place.is_dir():
        return sorted(file for file in place.glob("*.tar") if file.is_file() and not is_hidden(file.name))
    if place.name.endswith((".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tgz")):
        raise UserError(f"data.path: '{place}' is compressed, so that no picture is read alone; make a .tar of it")
    if place.suffix.lower() != ".tar":
        return []
    found = [place] if place.is_file() else sorted(Path(file) for file in glob.glob(str(place)) if Path(file).is_file())
    if not found:
        hint = f"; write {place.name.partition('{')[0]}*.tar" if "{" in place.name else ""
        raise UserError(f"data: cannot load '{place}': there is no such archive{hint}")
    return found


def list_tars(archives: Sequence[Path], path: str, split: str) -> tuple[TarTree, str]:
    """Return the files in archives, and the rest of the split: archives are splits if the name of each begins with one.

    Only headers are read.

    Raises:
        UserError: An archive is damaged, or there is no such split.
    """
    groups = of_split(archives, archives[0].parent, path, split)
    chosen = [file for part in groups.values() for file in part]
    if not groups.keys() <= {"train"}:
        split = f"train{''.join(split.partition('[')[1:])}"
    members: dict[str, Member] = {}
    others = 0
    for archive in chosen:
        prefix = f"{archive.name}/" if len(chosen) > 1 else ""
        found, left = _index(archive)
        members |= {prefix + member.name: member for member in found}
        others += left
    left_out = [f"{others:,} hidden files, links and other members that are no files"] if others else []
    if len(chosen) < len(archives):
        left_out.append(f"{len(archives) - len(chosen):,} archives of other splits")
    root = archives[0].parent if len(chosen) > 1 else chosen[0]
    return TarTree(root, sorted(members), left_out, members=members), split


def _index(archive: Path) -> tuple[list[Member], int]:
    """Return the files in an archive, and the number of its other members."""
    found: list[Member] = []
    others = end = 0
    try:
        with _Headers(archive) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for entry in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them
                if tar.offset <= end:  # a negative size would lead back
                    raise tarfile.ReadError(f"the header at byte number {entry.offset:,} is damaged")
                end, name = tar.offset, posixpath.normpath(entry.name).lstrip("/")
                if entry.type not in FILES or entry.sparse is not None or any(map(is_hidden, name.split("/"))):
                    others += not entry.isdir()
                else:
                    found.append(Member(archive, entry.offset_data, entry.size, name))
            if os.pread(file.fileno(), tarfile.BLOCKSIZE, tar.offset) != bytes(tarfile.BLOCKSIZE):
                raise UserError(f"data: cannot load '{archive}': it is cut short")
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:  # of damaged headers
        raise UserError(f"data: cannot load '{archive}': {one_line(error)}") from error
    return found, others


class _Headers(io.FileIO):
    """A file whose reads are bounded: a header may state any size, and tarfile reads names of it."""

    def read(self, size: int | None = -1, /) -> Any:
        if size is None or not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header has {size:,} bytes; at most {MAX_HEADER:,} are read")
        return super().read(size)
