"""A run stays what it was: its processes, its teacher, its folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from launch.commands import train
from tests.launch.conftest import Command
from trainers.checkpoints import checkpoint


class Relaunched(Exception):
    """In place of the processes."""


@pytest.mark.parametrize(("options", "count"), [(["--oversubscribe"], 2), (["--processes", "4", "--oversubscribe"], 4)])
def test_a_resume_takes_the_processes_of_before(
    distill: Command, student: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], count: int
) -> None:
    read = checkpoint.read_state
    monkeypatch.setattr(checkpoint, "read_state", lambda folder: {**read(folder), "processes": 2})

    def relaunch(processes: int, arguments: list[str]) -> None:
        raise Relaunched(processes, arguments)

    monkeypatch.setattr(train, "start_workers", relaunch)
    with pytest.raises(Relaunched) as caught:
        distill("resume", student, *options)
    assert caught.value.args == (count, ["resume", str(student), "--processes", str(count)])


@pytest.mark.parametrize("command", ["evaluate", "sample", "export"])
def test_a_student_is_not_used_with_another_teacher(
    distill: Command, student: Path, teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    teacher = Path(shutil.copytree(teachers / "dropout", tmp_path / "other"))
    file = student / "run.yaml"
    file.write_text(file.read_text().replace(str(teachers / "edm"), str(teacher)))
    result = distill(command, student)
    assert result.code == 2
    assert result.err == f"distill: '{student}' was trained from another teacher than is now in '{teacher}'\n"


def test_files_beside_a_teacher_do_not_change_it(
    distill: Command, student: Path, teachers: Path, tmp_path: Path
) -> None:
    teacher = Path(shutil.copytree(teachers / "edm", tmp_path / "same"))
    (teacher / "README.md").write_text("a note\n")
    file = student / "run.yaml"
    file.write_text(file.read_text().replace(str(teachers / "edm"), str(teacher)))
    assert distill("sample", student).code == 0


def test_an_untrained_student_is_not_exported(distill: Command, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = checkpoint.read_state
    monkeypatch.setattr(checkpoint, "read_state", lambda folder: {**read(folder), "images": 0})
    result = distill("export", student)
    assert result.code == 2 and "has not trained yet" in result.err
    assert not (student / "export").exists()


def test_a_folder_with_another_runs_log_is_not_taken(distill: Command, recipe_file: Any, student: Path) -> None:
    shutil.rmtree(student / "checkpoints")
    result = distill("train", recipe_file(), "--folder", student)
    assert result.code == 2 and "holds a run already" in result.err


def test_a_folder_that_cannot_be_made_is_one_line(distill: Command, recipe_file: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = distill("train", recipe_file(), "--folder", tmp_path / "file" / "run")
    assert result.code == 1
    assert result.err.count("\n") == 1 and "Not a directory" in result.err
