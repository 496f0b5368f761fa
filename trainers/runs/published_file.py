"""The file of a published checkpoint: one that is here, or one that its name downloads."""

import re
from pathlib import Path

from distill.errors import UserError, options, require
from distill.teachers.published.names import PUBLISHED_FILES
from trainers.io.atomic import sha256
from trainers.io.console import plain, progress
from trainers.io.download import download_file

MOST_BYTES = 2**34  # of a checkpoint: the largest has about 1.5 billion parameters of 2 bytes


def published_name(given: Path, kind: str) -> str | None:
    """Return the published name that a file or a name has, or None for any other.

    Args:
        given: The file, or the name with or without `.pkl`.
        kind: The kind of network, "edm" or "edm2".
    """
    name = given.name.removesuffix(".pkl")
    return name if name in PUBLISHED_FILES[kind] else None


def find_published(given: Path, kind: str, digest: str | None = None) -> Path:
    """Return the file of a published checkpoint, which is downloaded if it is not here.

    Args:
        given: A file, or a name in PUBLISHED_FILES, which is downloaded to NAME.pkl at this place.
        kind: The kind of network, "edm" or "edm2".
        digest: The SHA-256 that the file must have. None for any.

    Raises:
        UserError: There is neither such a file nor such a name, the download fails, or the SHA-256 is another one.
    """
    if digest is not None:
        require(
            re.fullmatch(r"[0-9a-fA-F]{64}", digest) is not None,
            f"--sha256: must be 64 hexadecimal digits, got {digest!r:.80}",
        )
        digest = digest.lower()
    name = published_name(given, kind)
    file = given if given.exists() or name is None else given.with_name(f"{name}.pkl")
    if file.exists():
        if digest is not None and (found := sha256(file)) != digest:
            raise UserError(f"--sha256: '{file}' has {found}, not {digest}")
        return file
    if name is None:
        for other in PUBLISHED_FILES.keys() - {kind}:
            require(published_name(given, other) is None, f"import: '{given}' is for `distill import {other}`")
        known = options(PUBLISHED_FILES[kind], given.name, "docs/teachers.md")
        raise UserError(f"import: '{given}' is no file, nor the name of one to download: {known}")
    require(file.parent.is_dir(), f"import: '{file.parent}' is no folder to download to")
    url = PUBLISHED_FILES[kind][name]
    console = plain()
    console.print(f"download    {url}")
    with progress() as say:
        download_file(url, file, MOST_BYTES, digest, say)
    if digest is None:
        console.print("            nobody has pinned its SHA-256: add --sha256 with the one below to the next import")
    return file
