"""The download of one file, which goes on where an earlier one was interrupted."""

import os
import shutil
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from distill.errors import UserError, naming_final, one_line
from trainers.io.atomic import sha256, sync

TIMEOUT = 30  # seconds without a byte
PIECE = 2**20  # bytes
RANGE_REFUSED = 416  # the HTTP status of a server that has no bytes after those that are held


def download_file(url: str, file: Path, most: int, digest: str | None, say: Callable[[str], None]) -> None:
    """Download a file. It has its name only when it is complete.

    The bytes so far lie beside it, under a hidden name. The next call asks for the others, if the server's file is
    still the same by its ETag or its date.

    Args:
        url: The address.
        file: The file to write.
        most: The most bytes that are taken.
        digest: The SHA-256 that the file must have. None for any.
        say: Shows a line about the progress.

    Raises:
        UserError: There is no network, the server refuses, the file is too large or does not fit on the disk, the
            connection ended early, or the SHA-256 is another one.
    """
    part, mark = file.with_name(f".{file.name}.part"), file.with_name(f".{file.name}.mark")
    with naming_final(file, part, mark):
        try:
            try:
                _receive(url, part, mark, most, say)
            except HTTPError as error:
                if error.code != RANGE_REFUSED or not part.exists():
                    raise
                _remove(part, mark)  # of a file that has become shorter, or was complete: all of it is asked for
                _receive(url, part, mark, most, say)
        except (OSError, HTTPException, ValueError) as error:
            raise _failed(url, one_line(error)) from error
        if digest is not None and (found := sha256(part)) != digest:
            _remove(part, mark)
            raise UserError(f"--sha256: '{url}' has {found}, not {digest}; nothing was kept")
        sync(part)
        os.replace(part, file)
        _remove(mark)
        sync(file.parent)


def _receive(url: str, part: Path, mark: Path, most: int, say: Callable[[str], None]) -> None:
    """Add the bytes that are missing to the file `part`, or write it anew. `mark` keeps the version on the server."""
    held = part.stat().st_size if part.exists() and mark.exists() else 0
    asked = {"User-Agent": "distill"}
    if held:
        asked |= {"Range": f"bytes={held}-", "If-Range": mark.read_text()}
    with urlopen(Request(url, headers=asked), timeout=TIMEOUT) as answer:
        if answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {held}-"):
            held = 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else held + int(length)
        if total is not None and total > most:
            raise ValueError(f"it has {total:,} bytes, more than {most:,}")
        if total is not None and total - held > (free := shutil.disk_usage(part.parent).free):
            raise ValueError(f"it needs {total - held:,} bytes, and the disk has {free:,}")
        if not held:  # before the mark: bytes of an older version under the mark of this one would be taken for its own
            part.unlink(missing_ok=True)
        _write_mark(mark, answer)
        with part.open("ab" if held else "wb") as stream:
            while block := answer.read(PIECE):
                held += len(block)
                if held > most:
                    raise ValueError(f"it has more than {most:,} bytes")
                stream.write(block)
                say(f"{url}: {held:,} of {total or most:,} bytes")
    if total is not None and part.stat().st_size != total:
        kept = ", which are kept: the same command goes on" if mark.exists() else ""
        raise ValueError(f"it ended after {held:,} of {total:,} bytes{kept}")


def _write_mark(mark: Path, answer: HTTPResponse) -> None:
    """Keep the version of the file on the server. Without a strong one no later download can go on from this one."""
    tag = answer.headers.get("ETag", "")
    version = tag if tag.startswith('"') else answer.headers.get("Last-Modified")
    if version:
        mark.write_text(version)
    else:
        mark.unlink(missing_ok=True)


def _remove(*files: Path) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _failed(url: str, reason: str) -> UserError:
    """Return the error of a download, with the line that fetches the file on a machine with a network."""
    return UserError(f"import: cannot download the file: {reason}; to fetch it elsewhere: `curl -LO {url}`")
