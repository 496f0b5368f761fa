"""JSON Lines that survive a kill."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distill.errors import UserError
from trainers.io.jsonl import append, read, rewind


def test_lines_come_back(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    assert read(file) == []
    append(file, {"images": 8, "loss": 0.1})
    append(file, {"images": 16, "loss": 0.25})
    assert read(file) == [{"images": 8, "loss": 0.1}, {"images": 16, "loss": 0.25}]
    assert file.read_text() == '{"images": 8, "loss": 0.1}\n{"images": 16, "loss": 0.25}\n'


def test_a_line_that_a_kill_cut_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text('{"images": 8}\n{"images": 16}\n{"images": 24, "lo')
    assert read(file) == [{"images": 8}, {"images": 16}]
    rewind(file, 1000)
    append(file, {"images": 24})
    assert file.read_text() == '{"images": 8}\n{"images": 16}\n{"images": 24}\n'


def test_rewind_keeps_what_is_not_later(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    for images in (8, 16, 24):
        append(file, {"images": images, "loss": 1 / images, "time": {"at": 1.5}})
    before = file.read_text().splitlines()
    rewind(file, 16)
    assert file.read_text().splitlines() == before[:2]
    rewind(file, 0)
    assert file.read_text() == ""
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_rewind_of_no_file_makes_none(tmp_path: Path) -> None:
    rewind(tmp_path / "log.jsonl", 8)
    assert list(tmp_path.iterdir()) == []


OTHERS = {
    "a torn line": b'{"images": 999, "tea',
    "zeros": bytes(4096),
    "no UTF-8": b"\x89PNG\xff\xfe",
    "a number": b"7",
    "a list": b"[1]",
    "null": b"null",
    "no images": b'{"note": "moved to node b"}',
    "images of another kind": b'{"images": "8"}\n{"images": true}\n{"images": 8.0}\n{"images": null}\n{"images": [8]}',
    "infinite images": b'{"images": Infinity}\n{"images": 1e999}',
    "a long number": b'{"images": ' + b"9" * 5000 + b"}",
    "deep nesting": b"[" * 100_000,
    "a carriage return": b'\r{"images": 8\r',
    "a long line": b'{"images": 8, "x": "' + b"x" * 3_000_000 + b'"}',
    "UTF-16": '{"images": 12}\n'.encode("utf-16"),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("other", OTHERS)
def test_a_line_that_is_no_record_is_dropped(other: str, first: bool, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    lines = [b'{"images": 8}', b'{"images": 16}']
    lines.insert(0 if first else 2, OTHERS[other])
    file.write_bytes(b"\n".join(lines) + b"\n" * first)
    assert read(file) == [{"images": 8}, {"images": 16}]
    rewind(file, 1000)
    assert file.read_text() == '{"images": 8}\n{"images": 16}\n'


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to a folder", "link to nowhere"])
def test_what_is_no_file_is_refused(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(tmp_path if kind == "link to a folder" else tmp_path / "none")
    with pytest.raises(UserError, match=f"^'{file}' is no regular file"):
        rewind(file, 8)
    assert read(file) == []


def test_a_file_larger_than_any_log_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    with file.open("wb") as stream:
        stream.truncate(2**40)
    for look in (read, lambda file: rewind(file, 8)):
        with pytest.raises(UserError, match=rf"^'{file}' has more than 2,147,483,648 bytes, and is no log; move it"):
            look(file)
    assert [one.name for one in tmp_path.iterdir()] == ["log.jsonl"]
