"""Run folders in every state: ended early, copied, renamed, and with something else in the place of their files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from rich.console import Console
from safetensors.torch import load_file, save_file

import trainers
from distill.denoiser import Denoiser
from distill.errors import UserError
from tests.tiny import fit_run, recipe, teacher_recipe
from trainers import loop
from trainers.checkpoints import checkpoint
from trainers.engine.session import Session
from trainers.hooks import trackers
from trainers.hooks.evaluate import best_value
from trainers.io import jsonl
from trainers.io.atomic import sha256
from trainers.loop import refuse_used
from trainers.runs import load
from trainers.runs.load import load_trained


class Broken(Exception):
    """The error that ends a run."""


def test_a_run_that_never_trained_does_not_block(
    teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails in its first update, and starts again in another precision, as if it had never been."""

    def broken(session: Session) -> None:
        raise Broken

    settings, here = recipe(teachers / "edm", images=16), Accelerator(cpu=True)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "advance", broken)
        with pytest.raises(Broken):
            trainers.train({**settings, "precision": "bfloat16"}, tmp_path / "run", accelerator=here)
    assert [int(folder.name) for folder in checkpoint.folders(tmp_path / "run/checkpoints")] == [0]
    (tmp_path / "run/log.jsonl").touch()
    trainers.train(settings, tmp_path / "run", accelerator=here)
    trainers.train(settings, tmp_path / "clean", accelerator=here)
    last = f"checkpoints/{16:012d}/manifest.json"
    assert (tmp_path / "run" / last).read_text() == (tmp_path / "clean" / last).read_text()
    with pytest.raises(UserError, match="holds a run already"):
        trainers.train(settings, tmp_path / "run", accelerator=here)


@pytest.mark.parametrize("name", ["log.jsonl", "metrics.jsonl", "best/x", f"checkpoints/{8:012d}/x"])
def test_a_run_that_trained_is_not_overwritten(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("anything")
    with pytest.raises(UserError, match="holds a run already"):
        refuse_used(tmp_path)


def test_a_start_that_comes_too_late_harms_nothing(teachers: Path, tmp_path: Path) -> None:
    """Two start in one folder at once. The other one has trained and ended before this one takes the lock."""
    settings = recipe(teachers / "edm", images=16)
    fit_run(settings, tmp_path / "run")
    before = (tmp_path / "run/log.jsonl").read_bytes()
    with pytest.raises(UserError, match="holds a run already"):
        fit_run(settings, tmp_path / "run")
    assert before and (tmp_path / "run/log.jsonl").read_bytes() == before


PLACES = ["log.jsonl", "metrics.jsonl", "run.yaml", ".lock", "stopped.json", "wandb.json", "trackio.json"]
PLACES += ["samples/", "best/", "power_ema/", "checkpoints/", "tensorboard/", "teacher/"]


@pytest.mark.parametrize("kind", ["other", "pipe", "link to nowhere"])
@pytest.mark.parametrize("place", PLACES)
def test_another_kind_of_thing_is_refused_in_a_line(place: str, kind: str, teachers: Path, tmp_path: Path) -> None:
    path = tmp_path / place.strip("/")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to nowhere":
        path.symlink_to(tmp_path / "none")
    elif place.endswith("/"):
        path.write_text("a file")
    else:
        path.mkdir()
    wanted = "folder" if place.endswith("/") else "regular file"
    with pytest.raises(UserError) as caught:
        fit_run(recipe(teachers / "edm", images=8), tmp_path)
    assert str(caught.value) == f"'{path}' is no {wanted}, and a run writes there; move it away"


def test_a_damaged_log_ends_no_resume(teachers: Path, tmp_path: Path) -> None:
    settings = recipe(teachers / "edm", images=16, evaluation={"every": 8, "samples": 64}, log_every=8)
    fit_run(settings, tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff")
    (tmp_path / "best/metrics.json").write_bytes(b"\x00\xff")
    with (tmp_path / "log.jsonl").open("ab") as stream:
        stream.write(b'7\n{"note": "moved to node b"}\n\x89PNG\xff\xfe' + bytes(4096))
    fit_run({**settings, "images": 24}, tmp_path, resume=True)
    assert [record["images"] for record in jsonl.read(tmp_path / "log.jsonl")] == [8, 16, 24]
    assert [record["images"] for record in jsonl.read(tmp_path / "metrics.jsonl")] == [24]
    (record,) = jsonl.read(tmp_path / "metrics.jsonl")
    assert best_value(tmp_path / "best/metrics.json", "frechet", record) == record["frechet"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"frechet": NaN}', '{"frechet": "x"}', '{"frechet": null}', "[" * 9999]
)
def test_a_best_that_cannot_be_read_is_replaced(text: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(text)
    assert best_value(tmp_path / "metrics.json", "frechet", {"protocol": "a", "samples": 8}) is None


def identity(folder: Path, fresh: bool = False) -> str:
    return trackers.run_identity("wandb", folder, Console(quiet=True), fresh)


def test_a_copy_of_a_run_folder_has_curves_of_its_own(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    first = identity(run)
    assert identity(run) == first
    shutil.copytree(run, tmp_path / "copy")
    copied = identity(tmp_path / "copy")
    assert copied != first and identity(tmp_path / "copy") == copied and identity(run) == first
    run.rename(tmp_path / "renamed")
    assert identity(tmp_path / "renamed") == first
    assert identity(tmp_path / "renamed", fresh=True) != first


def test_a_wandb_file_of_an_older_version_counts(tmp_path: Path) -> None:
    (tmp_path / "wandb.json").write_text('{"id": "abcd1234"}\n')
    assert identity(tmp_path) == "abcd1234" == identity(tmp_path)
    shutil.copytree(tmp_path, tmp_path / "copy")
    assert identity(tmp_path / "copy") != "abcd1234"


@pytest.mark.parametrize(
    "text", ["", "\x00" * 99, "7", "[]", "{}", '{"id": 7}', '{"id": "../../x"}', '{"id": ""}', "[" * 9999]
)
def test_a_damaged_tracker_file_is_made_anew(text: str, tmp_path: Path) -> None:
    (tmp_path / "wandb.json").write_text(text)
    made = identity(tmp_path)
    assert len(made) == 8 and json.loads((tmp_path / "wandb.json").read_text())["id"] == made


def test_a_full_disk_under_a_tracker_ends_no_run(
    teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Accelerator, "log", full)
    session = fit_run(recipe(teachers / "edm", images=16, evaluation={"every": 16, "samples": 64}), tmp_path)
    assert session.state.images == 16
    line = "the trackers' numbers at 16 images are not written: [Errno 28] No space left on device; training goes on"
    assert capfd.readouterr().err.splitlines().count(line) == 3  # of the log, the evaluation and the comparison


def test_a_note_of_a_stop_that_cannot_be_written_is_told(
    teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The state is saved, so the run still ends as one that was stopped."""

    def stop(session: Session) -> None:
        raise loop.Stopped("stopped by SIGTERM")

    write = loop.atomic_file

    def full(file: Path) -> Any:
        if file.name == loop.STOPPED:
            raise OSError(28, "No space left on device")
        return write(file)

    monkeypatch.setattr(loop, "advance", stop)
    monkeypatch.setattr(loop.STOP, "reason", 15)
    monkeypatch.setattr(loop, "atomic_file", full)
    with pytest.raises(loop.Stopped, match="at 0 images, which are saved"):
        fit_run(recipe(teachers / "edm"), tmp_path)
    assert "stopped.json' is not written: [Errno 28]" in capfd.readouterr().err


def test_weights_that_are_not_finite_are_not_loaded(teachers: Path, tmp_path: Path) -> None:
    """As an older version, or a damaged disk, may have left them: with a manifest that holds."""
    fit_run(recipe(teachers / "edm", images=8), tmp_path)
    folder = tmp_path / "checkpoints" / f"{8:012d}"
    weights = load_file(folder / "ema.safetensors")
    name = sorted(weights)[3]
    weights[name].view(-1)[-1] = torch.inf
    save_file(weights, folder / "ema.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    file = folder / "ema.safetensors"
    manifest["ema.safetensors"] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="not finite"):
        load_trained(tmp_path)


def test_a_network_takes_no_memory_before_its_weights_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's run.yaml may ask for a network of any size, whatever the size of its checkpoints."""
    fit_run(teacher_recipe(images=8), tmp_path)
    settings = yaml.safe_load((tmp_path / "run.yaml").read_text())
    settings["network"]["block_out_channels"] = [2 * width for width in settings["network"]["block_out_channels"]]
    right, devices = load.fresh_denoiser, list[str]()

    def fresh(*arguments: Any) -> Denoiser:
        devices.append((made := right(*arguments)).network.unet.conv_in.weight.device.type)
        return made

    monkeypatch.setattr(load, "fresh_denoiser", fresh)
    load_trained(tmp_path)
    assert devices == ["meta", "cpu"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError, match=r"conv_in.weight is \[8, 1, 3, 3\], the network's is \[16, 1"):
        load_trained(tmp_path)
    assert devices == ["meta", "cpu", "meta"]
