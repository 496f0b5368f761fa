"""Fixtures of the tests of the command line: finished runs, and the command in this process."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from launch.main import main
from tests.tiny import fit_run, once, recipe, shared, teacher_recipe, teachers

__all__ = ["shared", "teachers"]


class Result(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def distill(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """`distill ARGUMENTS` in this process, in an empty working directory."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("launch.main.exit_now", sys.exit)

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["distill", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit:
            main()
        out, err = capfd.readouterr()
        return Result(int(exit.value.code or 0), out, err)

    return call


@pytest.fixture
def recipe_file(teachers: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a recipe: a distillation, or with `trains="teacher"` a teacher's."""

    def write(**changes: Any) -> Path:
        if changes.pop("trains", "") == "teacher":
            settings = teacher_recipe(**changes)
        else:
            settings = recipe(teachers / "edm", **changes)
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump({key: value for key, value in settings.items() if value is not ...}))
        return file

    return write


@pytest.fixture(scope="session")
def finished(shared: Path, teachers: Path) -> Path:
    """Run folders of 16 images, with samples and best/: `student`, and its `teacher`."""

    def make(folder: Path) -> None:
        common: dict[str, Any] = {"images": 16, "checkpoint_every": 8, "evaluation": {"every": 8, "samples": 64}}
        for name, settings in (
            ("student", recipe(teachers / "edm", **common)),
            ("teacher", teacher_recipe(**common)),
        ):
            fit_run(settings, folder / name)

    return once(shared, "finished", make)


@pytest.fixture
def student(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished distillation."""
    return Path(shutil.copytree(finished / "student", tmp_path / "student"))


@pytest.fixture
def teacher_run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished teacher."""
    return Path(shutil.copytree(finished / "teacher", tmp_path / "teacher_run"))
