"""The table of objectives, from an empty folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import objectives


@pytest.mark.slow
def test_trains_what_the_recipes_start_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Teacher, weaker teacher, classifier, pairs and the generator that another starts from: one command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(objectives, "PAIRS", 256)
    monkeypatch.setattr(objectives, "TURNS", 1)
    objectives.main("digits", ["images=256"], Path("out"), ["autoguided", "rewarded", "hipa", "sid2a"])
    made = {"teacher", "weak_teacher", "classifier", "pairs", "autoguided", "rewarded", "hipa", "sid2a", "sid"}
    assert {folder.name for folder in Path("runs").iterdir()} == {f"digits_{name}" for name in made}
    page = Path("out/digits.md").read_text()
    rows = [line.split(" | ")[0].strip("| ") for line in page.partition("## KID")[0].splitlines() if "| " in line[:2]]
    assert rows[2:] == ["autoguided", "hipa", "rewarded", "sid", "sid2a"]
    picture = Path("out/digits.png").read_bytes()
    shutil.rmtree("runs")  # what was measured is kept
    objectives.main("digits", ["images=256"], Path("out"), ["autoguided", "rewarded", "hipa", "sid2a"])
    assert not Path("runs").exists() and Path("out/digits.md").read_text() == page
    assert Path("out/digits.png").read_bytes() == picture
