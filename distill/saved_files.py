"""Files that other libraries write and read: their permissions, and the sizes within which they are read.

safetensors writes each file under a private temporary name, and so leaves it readable by its owner alone. It parses a
header of up to 100 MB, which takes gigabytes and minutes, and diffusers parses an index of any size.
"""

from __future__ import annotations

import json
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

MAX_BYTES = 2**24  # of a JSON file, the header of a safetensors file, and the directory of a zip file: 300,000 tensors
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class TooLarge(OSError, ValueError):
    """A file claims more than it may or has, or is packed otherwise. It is an error of the disk and of the content."""


def save_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file.

    Args:
        tensors: The tensors by name, each contiguous and with memory of its own.
        file: The file.
        metadata: Texts for the header of the file.

    Raises:
        SafetensorError: The file cannot be written.
    """
    from safetensors.torch import save_file

    save_file(dict(tensors), file, metadata)
    set_permissions(file)


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Return the content of a safetensors file, for a file that the caller writes. `metadata` goes into its header.

    `save_tensors` writes beside its file under a random name, which a kill leaves behind for good.
    """
    from safetensors.torch import save

    content: bytes = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata)
    return content


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name, mapped into memory.

    Raises:
        OSError: The file cannot be read, or its header is too large.
        SafetensorError: The file is damaged.
    """
    with open_tensors(file) as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)


def open_tensors(file: Path) -> Any:
    """Return the opened safetensors file of `safetensors.safe_open`, mapped into memory, after a look at its header.

    Raises:
        OSError: The file cannot be read or mapped, or its header is too large.
        SafetensorError: The file is damaged.
    """
    from safetensors import safe_open

    check_header(file)
    try:
        return safe_open(file, "pt")
    except (MemoryError, RuntimeError) as error:  # safetensors says the one, and torch the other
        raise TooLarge(f"it has {file.stat().st_size:,} bytes, which this process may not map") from error


def check_header(file: Path) -> None:
    """Raise an OSError, before anything is parsed, if a safetensors file has too large a header, or is no file."""
    with open_regular(file) as stream:
        start, size = stream.read(8), os.fstat(stream.fileno()).st_size
    claimed = struct.unpack("<Q", start)[0] if len(start) == 8 else 0  # safetensors refuses a shorter file itself
    if claimed > size - len(start):
        raise TooLarge(f"its header claims {claimed:,} bytes, the file has {size:,}")
    if claimed < 2 and size >= 8:
        raise TooLarge("it has no header")
    if claimed > MAX_BYTES:
        raise TooLarge(f"its header has {claimed:,} bytes, more than {MAX_BYTES:,}")


def tensor_dtypes(file: Path) -> dict[str, str]:
    """Return the names of the dtypes in an intact safetensors file, by tensor. No weights are read."""
    with open_regular(file) as stream:
        header: dict[str, dict[str, Any]] = json.loads(stream.read(*struct.unpack("<Q", stream.read(8))))
    return {name: entry["dtype"] for name, entry in header.items() if name != "__metadata__"}


def check_folder(folder: Path) -> None:
    """Raise an OSError if a file in the folder of a model has too large a header, or is too large an index or config.

    The vocabulary of a tokenizer may be larger, and is not looked at.
    """
    for file in folder.glob("*.safetensors"):
        check_header(file)
    for file in (*folder.glob("*.index.json"), *folder.glob("*config.json"), *folder.glob("model_index.json")):
        if not file.is_file() or file.stat().st_size > MAX_BYTES:
            raise TooLarge(f"{file.name} is no regular file of at most {MAX_BYTES:,} bytes")


def read_bounded(file: Path, limit: int = MAX_BYTES) -> bytes:
    """Return the content of a file.

    Raises:
        OSError: The file cannot be read, is no regular file, or has more than `limit` bytes.
    """
    with open_regular(file) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise TooLarge(f"it has more than {limit:,} bytes")
    return content


def open_regular(file: Path) -> BufferedReader:
    """Open a file for reading, or raise an OSError at once if it is no regular file.

    A FIFO would wait for a writer, and a device may never end.
    """
    return open(file, "rb", opener=_open_regular)  # it has the name of the file, which a descriptor has not


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise TooLarge("it is no regular file")


@contextmanager
def open_archive(file: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip file of arrays. Its members are stored or deflated, and a reader bounds what it takes of them.

    Raises:
        OSError: The file cannot be read, or it is damaged, encrypted or packed otherwise, also when it is read inside
            the context.
    """
    with open_regular(file) as stream:
        _check_directory(stream)
        try:
            with zipfile.ZipFile(stream) as archive:
                if any(one.flag_bits & 1 or one.compress_type not in _PACKINGS for one in archive.infolist()):
                    raise TooLarge("its members are encrypted, or neither stored nor deflated")
                yield archive
        # NotImplementedError: a newer version of the format. EOFError, OverflowError: a member beyond the file.
        except (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, EOFError, OverflowError) as error:
            raise TooLarge(str(error) or "it is cut short") from error


def _check_directory(stream: BufferedReader) -> None:
    """Raise an OSError if the directory of a zip file is too large, since it is read whole before a member is."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - 98))
    tail = stream.read().rjust(98, b"\0")  # the end of the directory, its place, and its end once more in 64 bits
    if tail[-22:-18] != b"PK\5\6":
        raise TooLarge("it is no zip file, or has more behind its end")
    large = tail[-42:-38] == b"PK\6\7"
    if large and int.from_bytes(tail[-34:-26], "little") != size - 98:  # Python takes the end from that place
        raise TooLarge("its directory does not lie at its end")
    claimed = int.from_bytes(tail[40:48] if large else tail[-10:-6], "little")
    if claimed > MAX_BYTES:
        raise TooLarge(f"its directory has {claimed:,} bytes, more than {MAX_BYTES:,}")


def copy_file(source: Path, target: Path) -> None:
    """Copy a regular file. Its holes stay holes, so that the copy takes no more of the disk than the file.

    Raises:
        OSError: The file is no regular file, or it cannot be read or written.
    """
    with open_regular(source) as stream, target.open("wb") as copy:
        descriptor, end = stream.fileno(), 0
        copy.truncate(size := os.fstat(descriptor).st_size)
        while end < size:
            try:
                start = os.lseek(descriptor, end, os.SEEK_DATA)
            except OSError:  # a hole up to the end
                return
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
            copy.seek(start)
            while start < end and (data := os.pread(descriptor, min(MAX_BYTES, end - start), start)):
                copy.write(data)
                start += len(data)


def set_permissions(place: Path) -> None:
    """Give a file, or all files in a folder, the permissions that the umask gives to new files."""
    umask = _umask()
    for file in place.rglob("*") if place.is_dir() else (place,):
        if file.is_file() and not file.is_symlink():
            file.chmod(0o666 & ~umask)


def _umask() -> int:
    """Return the umask of this process."""
    try:  # os.umask only reads by setting, and files that another thread makes in between would be open to everyone
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1], 8) for line in lines if line.startswith("Umask:"))
    except (OSError, StopIteration):
        umask = os.umask(0o077)
        os.umask(umask)
        return umask
