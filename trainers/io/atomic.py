"""Files and folders that are written atomically.

They are written under another name and renamed into place. A reader, and a process that was killed, therefore leave the
old content or the new, and never half of it.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distill.errors import naming_final
from distill.saved_files import open_regular


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with open_regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty staging folder to write into, and put it in the place of `folder` at the end.

    An exception removes the staging folder and leaves `folder` as it was.
    """
    recover(folder)
    staging, old = _beside(folder)
    with naming_final(folder, staging, old):
        staging.mkdir(parents=True)
        try:
            yield staging
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        # No system call replaces a folder that is not empty. A kill between the two renames is what `recover` is for.
        if folder.exists():
            os.rename(folder, old)
        os.rename(staging, folder)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Clean up after a process that died inside `atomic_folder`.

    Put the old folder back if the new one is not in place, and delete both staging folders.
    """
    staging, old = _beside(folder)
    if old.exists() and not folder.exists():
        os.rename(old, folder)
    for leftover in (staging, old):
        shutil.rmtree(leftover, ignore_errors=True)


def _beside(folder: Path) -> tuple[Path, Path]:
    """Return the names for the new and the old folder while they are exchanged. Both are hidden."""
    return folder.with_name(f".{folder.name}-staging"), folder.with_name(f".{folder.name}-old")


@contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """Yield a staging file to write, and put it in the place of `file` at the end.

    An exception removes the staging file and leaves `file` as it was.
    """
    staging = file.with_name(f".{file.name}.staging")
    with naming_final(file, staging):
        try:
            yield staging
            sync(staging)  # before the rename, so that a power cut cannot leave an empty file under the final name
            os.replace(staging, file)
        except BaseException:
            staging.unlink(missing_ok=True)
            raise
    sync(file.parent)  # the rename itself is on the disk only after the folder is


def remove_staging_files(folder: Path) -> None:
    """Remove the staging files that a process that died inside `atomic_file` left in `folder`."""
    for leftover in folder.glob(".*.staging"):
        leftover.unlink(missing_ok=True)
