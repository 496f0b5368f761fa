"""Files of pickles, read without running anything in them: plain ones, and those of `torch.save`."""

import mmap
import reprlib
import zipfile
from pathlib import Path
from typing import Any

from torch import Tensor

from distill.errors import UserError, one_line
from distill.pickles.reader import (
    CALLS,
    STATE_CALLS,
    STORAGE_NAMES,
    PickleReader,
    Refused,
    empty_storage,
    fill_storage,
    read_old,
)
from distill.saved_files import open_archive, open_regular

_ZIP = b"PK\x03\x04"


def read_pickle(file: Path, key: str = "import") -> Any:
    """Read the object in a plain pickle.

    Args:
        file: The file.
        key: The beginning of an error's message.

    Raises:
        UserError: The file is missing, damaged or hostile, or holds other objects than published files do. The message
            is one line.
    """
    try:
        with open_regular(file) as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
            if view[:4] == _ZIP:
                raise Refused("it is a zip file, as torch.save writes; the published checkpoints are plain pickles")
            # A false length beyond the end of the map allocates nothing.
            return PickleReader(CALLS, 4 * len(view) + 2**20).read(view)
    except FileNotFoundError:
        raise UserError(f"{key}: no file '{file}'") from None
    except Exception as error:  # damaged arguments of opcodes raise many types
        raise UserError(f"{key}: cannot read '{file}': {one_line(error) or type(error).__name__}") from error


def read_saved(file: Path) -> Any:
    """Read the object in a file of `torch.save`, which may hold tensors, plain values and mappings.

    What it takes is bounded by its size. `torch.load` unpacks a zip file of any size, and lets the pickle ask for any
    memory, also with `weights_only`.

    Raises:
        Refused: The pickle holds something else.
        OSError: The file cannot be read, or is no regular file. Damaged arguments of opcodes raise many other types.
    """
    with open_regular(file) as stream:
        archived = stream.read(4) == _ZIP
    if archived:
        with open_archive(file) as archive:
            return _read_archive(archive, file.stat().st_size)
    with open_regular(file) as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
        return read_old(view, len(view), STATE_CALLS)


def _read_archive(archive: zipfile.ZipFile, size: int) -> Any:
    """Return the object in a zip file of torch, whose storages are members of their own."""
    members = archive.namelist()
    folders = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(folders) != 1:
        raise Refused("it is no zip file of torch.save")
    (folder,) = folders
    storages, room = dict[str, Tensor](), size

    def take(name: str, largest: int) -> bytes:
        with archive.open(f"{folder}{name}") as member:
            return member.read(largest + 1)

    def claim(identity: Any) -> Tensor:
        nonlocal room
        kind, storage, key, _, count = identity
        if kind != "storage":
            raise Refused(f"a storage is {reprlib.repr(identity)}")
        if key not in storages:
            storages[key] = empty_storage(storage, key, count, room)
            room -= storages[key].nbytes
            fill_storage(storages[key], take(f"data/{key}", storages[key].nbytes))
        return storages[key]

    if f"{folder}byteorder" in members and take("byteorder", 6) != b"little":
        raise Refused("its numbers are not in the order of this machine")
    content = take("data.pkl", size)
    if len(content) > size:
        raise Refused("it unpacks to more than it holds")
    return PickleReader({**STORAGE_NAMES, **STATE_CALLS}, 4 * size, reference=claim).read(content)
