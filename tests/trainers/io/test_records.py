"""JSON Lines that survive a kill."""

from __future__ import annotations

from pathlib import Path

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
