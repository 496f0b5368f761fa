"""A folder or a file is replaced as a whole or not at all."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from distill.errors import UserError, one_line
from trainers.io.atomic import atomic_file, atomic_folder, sha256


def write(folder: Path, text: str) -> None:
    with atomic_folder(folder) as staging:
        (staging / "a").write_text(text)


def test_the_new_folder_takes_the_place_of_the_old(tmp_path: Path) -> None:
    for text in ("first", "second"):
        write(tmp_path / "x", text)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x" / "a").read_text() == "second"


def test_what_fails_halfway_leaves_the_old_one(tmp_path: Path) -> None:
    write(tmp_path / "x", "first")
    with pytest.raises(OSError, match="disk full"), atomic_folder(tmp_path / "x") as staging:
        (staging / "a").write_text("half")
        raise OSError("disk full")
    assert (tmp_path / "x" / "a").read_text() == "first"
    write(tmp_path / "x", "third")  # the leftover is in nobody's way
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_sha256_is_the_hash_of_all_blocks(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000  # more than two blocks
    (tmp_path / "x").write_bytes(content)
    assert sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    with pytest.raises(KeyError), atomic_file(file) as staging:
        staging.write_text("half")
        raise KeyError
    assert file.read_text() == "old"
    with atomic_file(file) as staging:
        staging.write_text("new")
    assert file.read_text() == "new" and [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("atomic", [atomic_folder, atomic_file])
def test_an_error_names_the_final_place(atomic: Any, tmp_path: Path) -> None:
    """The operating system's error has a file, those of libraries a text, and a cause is told too."""
    place = tmp_path / "run.json"
    with pytest.raises(OSError) as full, atomic(place) as staging:
        raise OSError(errno.ENOSPC, "No space left on device", str(staging / "a"))
    assert str(full.value) == f"[Errno 28] No space left on device: '{place}/a'"
    with pytest.raises(UserError) as told, atomic(place) as staging:
        try:
            raise SafetensorError(f"I/O error: {staging.name}/b")
        except SafetensorError as error:
            raise UserError(f"cannot write {staging}") from error
    assert one_line(told.value) == f"cannot write {place}: I/O error: run.json/b"


def test_a_place_that_cannot_be_made_is_named_as_it_will_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OSError, match=rf"^\[Errno 20\] Not a directory: '{tmp_path}/file/x'$"),
        atomic_folder(tmp_path / "file/x"),
    ):
        pass
    with pytest.raises(OSError) as missing, atomic_file(tmp_path / "none/x") as staging:
        staging.write_text("")
    assert str(missing.value) == f"[Errno 2] No such file or directory: '{tmp_path}/none/x'"
