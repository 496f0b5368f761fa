"""The trackers: files without the name of the machine, and run folders that are copied and moved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from accelerate import Accelerator
from rich.console import Console

from distill.saved_files import MAX_BYTES
from tests.tiny import fit_run, recipe
from trainers.hooks import trackers

MARK = "zaphod-desk"


def test_tensorboard_gets_no_name_of_the_machine(
    teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: MARK)
    folder = tmp_path / "run"
    settings = recipe(teachers / "edm", images=16, log_every=8, tracking=["tensorboard"])
    fit_run(
        settings, folder, accelerator=Accelerator(cpu=True, log_with="tensorboard", project_dir=folder / "tensorboard")
    )
    files = [file for file in (folder / "tensorboard").rglob("*") if file.is_file()]
    assert [file for file in files if MARK in file.name or MARK.encode() in file.read_bytes()] == []
    events = [file.name.split(".")[4] for file in files if file.name.startswith("events.out.tfevents.")]
    assert events == ["run"] * 2


def identity(folder: Path) -> str:
    return trackers._wandb_id(folder, Console(quiet=True), fresh=False)


def test_a_run_folder_on_another_disk_stays_the_run(tmp_path: Path) -> None:
    """A move to another disk is a copy whose original is removed."""
    run, moved = tmp_path / "run", tmp_path / "moved"
    run.mkdir()
    first = identity(run)
    shutil.copytree(run, moved)
    assert moved.stat().st_ino != run.stat().st_ino
    shutil.rmtree(run)
    assert identity(moved) == first
    run.mkdir()  # another run takes the old place
    assert identity(run) != first and identity(moved) == first


def test_both_copies_of_a_run_are_told_apart(tmp_path: Path) -> None:
    for place in ("run", "copy", "copy of the copy"):
        (tmp_path / place).mkdir()
    first = identity(tmp_path / "run")
    found = {first}
    for origin, copy in (("run", "copy"), ("copy", "copy of the copy")):
        shutil.copy2(tmp_path / origin / "wandb.json", tmp_path / copy)
        found.add(identity(tmp_path / copy))
    assert len(found) == 3 and identity(tmp_path / "run") == first


@pytest.mark.parametrize("place", [{}, {"folder": 7}, {"folder": None, "inode": 3}, {"folder": "\0"}, {"inode": "x"}])
def test_a_place_that_says_nothing_is_no_copy(place: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "wandb.json").write_text(json.dumps({"id": "abcd1234", **place}))
    assert identity(tmp_path) == "abcd1234"


def test_a_file_of_any_size_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "wandb.json").open("w") as file:
        file.write('{"id": "abcd1234"}' + " " * MAX_BYTES)
    assert identity(tmp_path) != "abcd1234" and (tmp_path / "wandb.json").stat().st_size < 1000
