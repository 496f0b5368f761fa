"""The trackers: files without the name of the machine, and run folders that are copied and moved."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from accelerate import Accelerator
from PIL import Image
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


def test_tensorboard_gets_the_pictures(teachers: Path, tmp_path: Path) -> None:
    """Those of samples/ at their images, the health by noise level, and the newest comparison, as in the files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    every = {"samples_every": 8, "log_every": 8, "health": {"every": 8, "samples": 8}}
    settings = recipe(teachers / "edm", images=16, tracking=["tensorboard"], **every)
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=folder / "tensorboard")
    fit_run(settings, folder, accelerator=accelerator)
    (events,) = {file.parent for file in (folder / "tensorboard").rglob("events*") if "hparams" not in str(file)} - {
        file.parent for file in (folder / "tensorboard").rglob("events*") if len(file.relative_to(folder).parts) > 3
    }
    found = EventAccumulator(str(events), size_guidance={"images": 0}).Reload()
    assert [event.step for event in found.Images("samples")] == [8, 16]
    assert [event.step for event in found.Images("teacher above student")] == [0, 8, 16]
    assert [event.step for event in found.Images("health by noise level")] == [8, 16]
    files = (folder / "samples" / f"{16:012d}.png", folder / "comparison.png")
    for name, file in zip(("samples", "teacher above student"), files, strict=True):
        ours = Image.open(file).convert("RGB")
        theirs = Image.open(io.BytesIO(found.Images(name)[-1].encoded_image_string)).convert("RGB")
        assert ours.size == theirs.size and ours.tobytes() == theirs.tobytes()


def identity(folder: Path) -> str:
    return trackers.run_identity("wandb", folder, Console(quiet=True), fresh=False)


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
