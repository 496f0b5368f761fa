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
    with file.open("rb", buffering=0) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, which then takes the place of `folder` as a whole."""
    recover(folder)
    staging, old = _beside(folder)
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


def recover(folder: Path) -> None:
    """End what a kill left of `atomic_folder`: the old folder where there is no new one yet, and nothing beside it."""
    staging, old = _beside(folder)
    if old.exists() and not folder.exists():
        os.rename(old, folder)
    for leftover in (staging, old):
        shutil.rmtree(leftover, ignore_errors=True)


def _beside(folder: Path) -> tuple[Path, Path]:
    return folder.with_name(f".{folder.name}-staging"), folder.with_name(f".{folder.name}-old")


@contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """A file to write, which then takes the place of `file` as a whole."""
    staging = file.with_name(f".{file.name}.staging")
    try:
        yield staging
        sync(staging)
        os.replace(staging, file)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    sync(file.parent)


def remove_staging_files(folder: Path) -> None:
    """Remove the files that a kill left of `atomic_file` in `folder`."""
    for leftover in folder.glob(".*.staging"):
        leftover.unlink(missing_ok=True)
