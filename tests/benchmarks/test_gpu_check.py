"""Every section of the check on a GPU runs at a tiny size on the CPU, and one that fails stops no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_sections import Say, row, verdict


def test_every_section_runs(tmp_path: Path) -> None:
    assert gpu_check.write_page(tmp_path / "gpu.md", tiny=True, alone=False), (tmp_path / "gpu.md").read_text()
    page = (tmp_path / "gpu.md").read_text()
    assert all(f"## {section.title}" in page for section in gpu_check.SECTIONS.values())
    assert "| NO |" not in page and "nothing was found" not in page


def test_a_failure_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(say: Say, tiny: bool) -> None:
        say("the first line")
        raise RuntimeError("out of memory")

    sections = {
        "one": gpu_check.Section("One", fails, 5),
        "two": gpu_check.Section("Two", lambda say, tiny: say("2"), 5),
    }
    monkeypatch.setattr(gpu_check, "SECTIONS", sections)
    assert not gpu_check.write_page(tmp_path / "gpu.md", tiny=True, alone=False)
    page = (tmp_path / "gpu.md").read_text()
    assert "the first line\n\nfailed: RuntimeError: out of memory" in page and "## Two\n\n2\n" in page


def test_what_does_not_hold_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for equal, fine in ((True, True), (False, False)):
        section = gpu_check.Section("One", lambda say, tiny, equal=equal: row(say, "float32", verdict(equal)), 5)
        monkeypatch.setattr(gpu_check, "SECTIONS", {"one": section})
        assert gpu_check.write_page(tmp_path / "gpu.md", tiny=True, alone=False) is fine


def test_the_budgets_are_eight_minutes_together() -> None:
    assert sum(section.seconds for section in gpu_check.SECTIONS.values()) <= 480
