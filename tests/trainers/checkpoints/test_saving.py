"""Saves run beside training, end alone when the disk fails, and never mix with one another."""

from __future__ import annotations

import errno
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import build_session, fit_run, recipe
from trainers.checkpoints import checkpoint
from trainers.checkpoints import saver as saver_module
from trainers.checkpoints.saver import SaveError, Saver
from trainers.engine.session import Session
from trainers.io import jsonl


@pytest.fixture(scope="module")
def session(teachers: Path) -> Session:
    """After one update, at 8 images."""
    session = build_session(recipe(teachers / "edm"))
    session.update_players(session)
    session.state.average(8)
    return session


def full(path: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_a_checkpoint_is_of_the_moment_it_was_asked_for(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on while a slow disk writes; the next save waits."""
    saver, sync, go = Saver(tmp_path, 3, session.accelerator), saver_module.sync, threading.Event()
    monkeypatch.setattr(saver_module, "sync", lambda path: (go.wait(30), sync(path)))
    (weights,) = (p for n, p in session.state.players["fake"].bare.named_parameters() if n.endswith("conv_in.weight"))
    before = weights.clone()
    session.state.images = 8
    saver.save(session)
    assert checkpoint.folders(tmp_path) == []
    with torch.no_grad():
        weights.add_(1)
    session.state.images = 16
    threading.Timer(0.2, go.set).start()
    saver.save(session)
    assert [int(folder.name) for folder in checkpoint.folders(tmp_path)] == [8]
    saver.wait()
    for images, expected in ((8, before), (16, before + 1)):
        folder = tmp_path / f"{images:012d}"
        assert checkpoint.flaw(folder) is None and checkpoint.read_state(folder)["images"] == images
        (name,) = (n for n in load_file(folder / "fake.safetensors") if n.endswith("conv_in.weight"))
        assert torch.equal(load_file(folder / "fake.safetensors")[name], expected)
    with torch.no_grad():
        weights.copy_(before)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux")
def test_a_save_beside_training_steps_aside(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread alone, and not where training waits for it."""
    saver, sync, seen, ours = Saver(tmp_path, 1, session.accelerator), saver_module.sync, set[int](), os.nice(0)
    monkeypatch.setattr(saver_module, "sync", lambda path: (seen.add(os.getpriority(os.PRIO_PROCESS, 0)), sync(path)))
    session.state.images = 8
    saver.save(session)
    saver.wait()
    assert seen == {min(ours + saver_module.NICENESS, 19)} and os.getpriority(os.PRIO_PROCESS, 0) == ours
    seen.clear()
    session.state.images = 16
    saver.save_now(session)
    assert seen == {ours}


def test_a_full_disk_ends_the_save_and_the_next_one_is_tried(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    saver = Saver(tmp_path, 1, session.accelerator)
    session.state.images = 8
    saver.save_now(session)
    with monkeypatch.context() as patch:
        patch.setattr(saver_module, "sync", full)
        for images in (16, 24):
            session.state.images = images
            saver.save(session)
            saver.wait()
            err = capfd.readouterr().err
            place = re.escape(str(tmp_path / f"{images:012d}"))  # where it would be, and not where it was written
            failed = rf"\[Errno 28\] No space left on device: '{place}/\w+(\.\w+)*'"
            text = rf"the checkpoint at {images} images was not saved: {failed}; the newest is at 8\n"
            assert re.fullmatch(text, err), err
            assert [path.name for path in tmp_path.iterdir()] == [f"{8:012d}"]  # whole, and nothing half beside it
        with pytest.raises(SaveError, match=r"^the checkpoint at 24 images was not saved: .*No space left"):
            saver.save_now(session)
    capfd.readouterr()
    session.state.images = 32
    saver.save(session)
    saver.wait()
    assert capfd.readouterr().err == "the checkpoint at 32 images is saved again\n"
    assert [path.name for path in tmp_path.iterdir()] == [f"{32:012d}"]


def test_what_is_saved_is_not_saved_again(session: Session, tmp_path: Path) -> None:
    saver = Saver(tmp_path, 1, session.accelerator)
    session.state.images = 8
    saver.save_now(session)
    (folder,) = checkpoint.folders(tmp_path)
    before = (folder / "manifest.json").stat().st_mtime_ns
    saver.save_now(session)
    assert (folder / "manifest.json").stat().st_mtime_ns == before


def test_an_error_of_another_kind_is_no_disk_error(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(path: Path) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(saver_module, "sync", wrong)
    saver = Saver(tmp_path, 1, session.accelerator)
    saver.save(session)
    with pytest.raises(RuntimeError, match=r"^checkpoint: a bug$"):
        saver.wait()
    assert not list(tmp_path.iterdir())


def test_a_run_outlives_a_full_disk(
    teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Saves fail from the second to the fourth; the run ends where it would have."""
    settings, sync = recipe(teachers / "edm"), saver_module.sync
    fit_run(settings, tmp_path / "whole")
    capfd.readouterr()

    def sometimes(path: Path) -> None:
        part = path.parts[len((tmp_path / "run/checkpoints").parts) :]
        if part and part[0] in {f".staging-{images:012d}" for images in (24, 48, 72)}:
            full(path)
        sync(path)

    monkeypatch.setattr(saver_module, "sync", sometimes)
    fit_run(settings, tmp_path / "run")
    lines = capfd.readouterr().err.splitlines()
    told = [line.split(" images")[0] for line in lines if line.startswith("the checkpoint")]
    assert told == [f"the checkpoint at {images}" for images in (24, 48, 72, 96)]
    manifests = [(tmp_path / run / "checkpoints" / f"{96:012d}/manifest.json").read_text() for run in ("whole", "run")]
    assert manifests[0] == manifests[1]
    assert len(jsonl.read(tmp_path / "run/log.jsonl")) == 6


def test_a_run_that_cannot_save_its_beginning_or_its_end_says_so(
    teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver_module, "sync", full)
    with pytest.raises(SaveError, match=r"^the checkpoint at 0 images was not saved: "):
        fit_run(recipe(teachers / "edm"), tmp_path / "first")
    monkeypatch.undo()
    whole: Any = saver_module.sync

    def at_the_end(path: Path) -> None:
        if f"{96:012d}" in str(path):
            full(path)
        whole(path)

    monkeypatch.setattr(saver_module, "sync", at_the_end)
    with pytest.raises(SaveError, match=r"^the checkpoint at 96 images was not saved: "):
        fit_run(recipe(teachers / "edm"), tmp_path / "last")
    assert checkpoint.newest(tmp_path / "last/checkpoints")[0].name == f"{72:012d}"
