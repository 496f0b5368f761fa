"""Files and folders that must be whole."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sha256(file: Path) -> str:
    """The SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, which then takes the place of `folder` as a whole."""
    staging, old = folder.with_name(f".{folder.name}-staging"), folder.with_name(f".{folder.name}-old")
    for leftover in (staging, old):
        shutil.rmtree(leftover, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    if folder.exists():
        os.rename(folder, old)
    os.rename(staging, folder)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """A file to write, which then takes the place of `file` as a whole."""
    staging = file.with_name(f".{file.name}.staging")
    yield staging
    sync(staging)
    os.replace(staging, file)
    sync(file.parent)
