"""`distill init`: the file that it writes is a recipe that trains, and explains itself."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from tests.launch.conftest import Command
from tests.launch.test_mistakes import mistake
from trainers.recipe.load import resolve
from trainers.recipe.run import Run


def test_by_options(distill: Command, teachers: Path) -> None:
    """The recipe has the values of the options, a meaning above each key, and trains."""
    written = distill("init", "--teacher", teachers / "edm", "--data", "digits", "--gpus", 2, "--name", "mine", "--yes")
    assert (written.code, written.err) == (0, "")
    assert (
        written.out == "mine.yaml: next `distill plan mine.yaml --gpus 2` or `distill train mine.yaml --processes 2`\n"
    )
    run = resolve("mine.yaml")
    assert isinstance(run, Run) and (run.name, run.batch_size, run.images) == ("mine", 128, 1_000_000)
    assert run.teacher == str(teachers / "edm") and type(run.objective).__name__ == "SiD"
    text = Path("mine.yaml").read_text()
    assert "\n# The length of the run, in images.\nimages: 1000000\n" in text and "\ndata: digits\n" in text
    shorter = ("images=8", "batch_size=4", "log_every=4", "--folder", "run")
    assert distill("train", "mine.yaml", *shorter).code == 0


def test_by_questions(distill: Command, teachers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty answer takes the default: no data, 1 GPU, its batch, and the name of teacher and objective."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{teachers / 'edm'}\n\nsim\n\n32\n"))
    written = distill("init", "--out", "asked.yaml")
    assert written.code == 0, written.err
    run = resolve("asked.yaml")
    assert isinstance(run, Run) and (run.name, run.batch_size) == ("edm_sim", 32)
    assert type(run.data).__name__ == "DataFree" and type(run.objective).__name__ == "SIM"


def test_without_anyone_who_answers(distill: Command, teachers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    for given, question in (
        ((), "The teacher's folder"),
        (("--teacher", teachers / "edm"), "Pictures or prompts, by.*"),
    ):
        told = distill("init", *given)
        line = f"distill: init: '{question}' has no answer; give it as an option, or take the defaults with --yes\n"
        assert told.code == 2 and re.fullmatch(line, told.err)
    assert not list(Path.cwd().iterdir())


def test_mistakes_are_told_before_a_file_is_written(distill: Command, teachers: Path) -> None:
    edm = ("init", "--yes", "--teacher", teachers / "edm")
    assert mistake(distill("init", "--yes")) == "--teacher: has no default; name the folder of a teacher"
    assert mistake(distill(*edm, "--gpus", 0)) == "--gpus: must be at least 1, got 0"
    assert "name: must be a plain folder name, got 'a/b'" in mistake(distill(*edm, "--name", "a/b"))
    assert "batch_size: 10 is not divisible by processes x micro_batches = 4 x 1" in mistake(
        distill(*edm, "--gpus", 4, "--batch", 10)
    )
    assert mistake(distill(*edm, "--objective", "sit")).startswith("recipe: key 'objective' must be one of sim, sid, ")
    assert "dmd2" in mistake(distill(*edm, "--objective", "dmd2")).lower()  # needs real images
    assert not list(Path.cwd().iterdir())
    Path("edm_sid.yaml").write_text("mine")
    assert mistake(distill(*edm)) == "--out: 'edm_sid.yaml' exists already; name another file"
    assert Path("edm_sid.yaml").read_text() == "mine"
