"""The scan of a data set: every picture is decoded once before anything trains, and the result is kept."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from filelock import FileLock
from pydantic import Field, with_config
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError
from torch import Tensor
from typing_extensions import TypedDict

from distill.errors import UserError
from distill.records import STRICT, Count, read_record
from distill.saved_files import load_tensors, tensor_bytes
from trainers.data.pictures import Pictures
from trainers.data.pixels import (
    MAX_FILE_BYTES,
    MAX_PIXELS,
    Damaged,
    changes_in_conversion,
    decode_picture,
    open_picture,
    quiet_pillow,
    upright_size,
)
from trainers.io.atomic import atomic_file

SCANNED_AT_ONCE = 256  # the pictures between two steps of the progress bar, and between two polls for Ctrl-C
SHOWN_FROM = 2_000  # the number of pictures from which the progress is shown
LARGE = 2**24  # pixels; pictures of more are decoded one at a time, for the sake of memory
RULES = f"1: {MAX_PIXELS} pixels, {MAX_FILE_BYTES} bytes"  # what the result depends on beside the pictures

_large = threading.Lock()
Found = TypeVar("Found")


@with_config(STRICT)
class ScanRecord(TypedDict):
    """The content of the file of a scan."""

    damaged: list[tuple[Count, str]]
    converted: bool


@with_config(STRICT)
class HashRecord(TypedDict):
    """The content of the file of a hash."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Scan:
    """The result of a scan.

    Attributes:
        damaged: {number of a picture: why it cannot be read}.
        converted: Whether a picture has transparent parts, or channels of more than 8 bits.
    """

    damaged: dict[int, str]
    converted: bool


def scan_pictures(pictures: Pictures, name: str, console: Console) -> Scan:
    """Decode every picture, or return the result of an earlier scan of the same pictures.

    Args:
        pictures: The pictures.
        name: The name of the data set, for the progress.
        console: Where progress is printed.
    """
    with _kept(f"{RULES} {pictures.count} {pictures.stamp()}") as file:
        if (known := _read(file, pictures.count)) is not None:
            return known
        scan = _scan(pictures, name, console)
        with suppress(OSError), atomic_file(file) as staging:
            content = {"damaged": sorted(scan.damaged.items()), "converted": scan.converted}
            staging.write_text(json.dumps(content) + "\n", encoding="utf-8")
    return scan


def picture_sizes(pictures: Pictures, name: str, console: Console) -> Tensor:
    """Return height and width of each picture as it is seen, int32 [N, 2], or those of an earlier start.

    Args:
        pictures: The pictures, of which none is damaged.
        name: The name of the data set, for the progress.
        console: Where progress is printed.
    """
    with _kept(f"sizes {pictures.count} {pictures.stamp()}", ".safetensors") as file:
        with suppress(OSError, SafetensorError, KeyError):
            known = load_tensors(file)["sizes"]
            if known.shape == (pictures.count, 2) and known.dtype == torch.int32 and bool((known > 0).all()):
                return known.clone()  # from the mapped file, which may be replaced
        found = _each(pictures, _size_of, f"reading the sizes of the pictures in '{name}'", console)
        sizes = torch.tensor([size for _, size in found], dtype=torch.int32)
        with suppress(OSError), atomic_file(file) as staging:
            staging.write_bytes(tensor_bytes({"sizes": sizes}))
    return sizes


def hash_pictures(pictures: Pictures, settings: str, verify: bool) -> str:
    """Return a hash of the content of all pictures, or that of an earlier start.

    The earlier one counts if names, sizes and times of the files are as they were then.

    Args:
        pictures: The pictures.
        settings: The settings by which they become pixels, in words. They are part of the hash.
        verify: Whether all pictures are read now, and the earlier hash does not count.
    """
    with _kept(f"content {settings} {pictures.count} {pictures.stamp()}") as file:
        if not verify:
            with suppress(OSError, UserError):
                return str(read_record(file, HashRecord)["sha256"])
        digest = sha256(settings.encode())
        for number in range(pictures.count):
            digest.update(sha256(pictures.read(number)).digest())
        with suppress(OSError), atomic_file(file) as staging:
            staging.write_text(json.dumps({"sha256": digest.hexdigest()}) + "\n", encoding="utf-8")
    return digest.hexdigest()


@contextmanager
def _kept(key: str, ending: str = ".json") -> Iterator[Path]:
    """Yield the file that keeps what was found out about pictures, with a lock: one of the processes of a job works.

    Args:
        key: All that the result depends on.
        ending: The ending of the name of the file.
    """
    from datasets import config

    file = Path(config.HF_DATASETS_CACHE) / "distill_scans" / f"{sha256(key.encode()).hexdigest()[:32]}{ending}"
    lock: Any = nullcontext()
    with suppress(OSError):  # what cannot be kept is found out all the same
        file.parent.mkdir(parents=True, exist_ok=True)
        if os.access(file.parent, os.W_OK):
            lock = FileLock(file.with_suffix(".lock"))
    with lock:
        yield file


def _read(file: Path, count: int) -> Scan | None:
    """Return the result in a file. None if there is none, or if it is damaged."""
    with suppress(OSError, UserError):
        content = read_record(file, ScanRecord)
        damaged = dict(content["damaged"])
        return Scan(damaged, content["converted"]) if max(damaged, default=-1) < count else None
    return None


def _scan(pictures: Pictures, name: str, console: Console) -> Scan:
    """Decode every picture, in threads: Pillow's decoders run beside each other."""
    damaged: dict[int, str] = {}
    converted = False
    if not console.is_terminal and pictures.count >= SHOWN_FROM:
        console.print(f"data: '{name}': {pictures.count:,} pictures are decoded once, to find damaged ones")
    for number, found in _each(pictures, _look_at, f"looking for damaged pictures in '{name}'", console):
        if isinstance(found, str):
            damaged[number] = found
        else:
            converted |= found
    return Scan(damaged, converted)


def _each(
    pictures: Pictures, look: Callable[[Pictures, int], Found], title: str, console: Console
) -> Iterator[tuple[int, Found]]:
    """Yield the number of each picture, and what a function finds in it. Threads call the function.

    Args:
        pictures: The pictures.
        look: (pictures, number of a picture) -> what is found.
        title: The title of the progress bar, which a terminal shows where there are many pictures.
        console: Where it is shown.
    """
    hidden = not console.is_terminal or pictures.count < SCANNED_AT_ONCE
    with quiet_pillow(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:

        def parts() -> Iterator[range]:
            for first in range(0, pictures.count, SCANNED_AT_ONCE):
                yield range(first, min(first + SCANNED_AT_ONCE, pictures.count))

        steps = -(-pictures.count // SCANNED_AT_ONCE)
        for part in track(parts(), title, steps, console=console, disable=hidden):
            yield from zip(part, pool.map(partial(look, pictures), part), strict=True)


def _look_at(pictures: Pictures, number: int) -> bool | str:
    """Return why a picture cannot be read, or whether it changes in conversion."""
    try:
        picture = open_picture(pictures.read(number))
        with _large if picture.width * picture.height > LARGE else nullcontext():
            return changes_in_conversion(decode_picture(picture))
    except Damaged as why:
        return str(why)


def _size_of(pictures: Pictures, number: int) -> tuple[int, int]:
    """Return height and width of a picture as it is seen. Raise UserError if it was damaged since the scan."""
    try:
        return upright_size(open_picture(pictures.read(number)))
    except Damaged as why:
        raise UserError(f"data: {pictures.name(number)} {why}") from why
