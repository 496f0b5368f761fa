"""A run tells its own story: changes on a resume, its end, learning rates, updates and memory."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import trainers
from distill.errors import UserError
from tests.tiny import fit_run, recipe, teacher_recipe
from tests.trainers.interrupted import Cut, Interrupt, contents, interrupted
from trainers import loop
from trainers.checkpoints import checkpoint
from trainers.data import Dataset, Digits
from trainers.engine import memory
from trainers.io.jsonl import read
from trainers.recipe.public import public_changes

SHORT = {"images": 32, "checkpoint_every": 16, "log_every": 16, "samples_every": 96, "keep": 9}


def change(at: int, changed: dict[str, tuple[Any, Any]]) -> dict[str, Any]:
    return {"images": at, "changed": {key: {"old": old, "new": new} for key, (old, new) in changed.items()}}


def state(run: Path, images: int) -> dict[str, Any]:
    return checkpoint.read_state(run / "checkpoints" / f"{images:012d}")


@pytest.fixture
def run(teachers: Path, tmp_path: Path) -> Path:
    fit_run(recipe(teachers / "edm", **SHORT), tmp_path / "run")
    return tmp_path / "run"


def test_a_change_is_in_the_checkpoint_and_the_log(run: Path) -> None:
    trainers.resume(run, images=64, generator={"lr": 2e-3}, batch_size=16, allow=["generator.lr", "batch_size"])
    first = change(32, {"images": (32, 64), "batch_size": (8, 16), "generator.lr": (1e-3, 2e-3)})
    trainers.resume(run, images=96, log_every=96)
    second = change(64, {"images": (64, 96), "log_every": (16, 96)})
    assert [state(run, images)["changes"] for images in (32, 64, 96)] == [[], [first], [first, second]]
    log = read(run / "log.jsonl")
    assert [(record["images"], record.get("changes")) for record in log] == [
        (16, None),
        (32, None),
        (48, [first]),
        (64, None),
        (96, [second]),
    ]


def test_a_change_after_the_checkpoint_is_dropped(run: Path) -> None:
    """A later resume starts at an older checkpoint, with the settings that run.yaml has then."""
    trainers.resume(run, images=64, fake={"lr": 5e-3}, allow=["fake"])
    trainers.resume(run, images=80, generator={"lr": 5e-3}, allow=["generator"])
    for images in (64, 80):
        (run / "checkpoints" / f"{images:012d}" / "ema.safetensors").write_bytes(b"")
    trainers.resume(run, images=64, generator={"lr": 1e-3}, allow=["fake"])
    told = [change(32, {"images": (32, 64), "fake.lr": (1e-3, 5e-3)})]
    assert state(run, 64)["changes"] == told
    assert [found for record in read(run / "log.jsonl") for found in record.get("changes", [])] == told


def test_a_change_waits_for_the_next_line(teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the change and the line loses neither."""
    settings = recipe(teachers / "edm", **{**SHORT, "images": 48, "checkpoint_every": 8, "log_every": 24})
    run = tmp_path / "run"
    interrupted(settings, run, 8, monkeypatch)
    with monkeypatch.context() as patch:
        hooks_of = loop.hooks_of
        patch.setattr(loop, "hooks_of", lambda *arguments: [*hooks_of(*arguments), Interrupt(16)])
        with pytest.raises(Cut):
            trainers.resume(run, keep=2)
    assert not read(run / "log.jsonl")
    trainers.resume(run)
    assert [record.get("changes") for record in read(run / "log.jsonl")] == [[change(8, {"keep": (9, 2)})], None]


def test_other_data_that_were_accepted_are_a_change(tmp_path: Path) -> None:
    digits = Digits().load()
    settings = teacher_recipe(**SHORT)

    def half() -> Dataset:
        labels = digits.labels
        assert labels is not None
        return Dataset("digits", 900, digits.shape, labels[:900], digits.images)

    trainers.train(settings, tmp_path, data=digits)
    trainers.resume(tmp_path, images=48, data=half(), allow=["data"])
    data = state(tmp_path, 48)["changes"][0]["changed"]["data"]
    assert [data[side]["count"] for side in ("old", "new")] == [1797, 900]
    assert len(data["old"]["labels"]) == 12 and data["old"]["labels"] != data["new"]["labels"]


def test_a_finished_run_says_so_and_stays_as_it_is(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    times = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    capfd.readouterr()
    assert trainers.resume(run, keep=5).images == 32
    told = f"'{run}' is finished at 32 images; `distill resume {run} images=N` trains on until N images\n"
    assert capfd.readouterr().err == told
    assert contents(run) == before and {file: file.stat().st_mtime_ns for file in run.rglob("*")} == times


def test_fewer_images_than_are_done_are_refused(run: Path) -> None:
    before = contents(run)
    wrong = "^images: 16 is below the 32 that 'tiny' has trained on; give 32 or more$"
    with pytest.raises(UserError, match=wrong):
        trainers.resume(run, images=16)
    assert contents(run) == before
    shutil.rmtree(run / "checkpoints" / f"{16:012d}")
    (run / "checkpoints" / f"{32:012d}" / "ema.safetensors").write_bytes(b"")
    assert trainers.resume(run, images=16).images == 16  # the newest is damaged, and the valid one is of 0 images


def test_an_end_inside_a_batch_is_an_end(teachers: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fit_run(recipe(teachers / "edm", **{**SHORT, "images": 28}), tmp_path / "run")
    capfd.readouterr()
    assert trainers.resume(tmp_path / "run").images == 32
    assert "is finished at 32 images; " in capfd.readouterr().err


def test_rates_and_updates_are_logged_with_the_losses(teachers: Path, tmp_path: Path) -> None:
    rates = {"generator": {"lr": 1e-3, "warmup": 33}, "fake": {"lr": 2e-3, "decay": "cosine"}}
    fit_run(recipe(teachers / "edm", **{**SHORT, **rates, "fake_updates": 2, "images": 48}), tmp_path)
    trainers.resume(tmp_path, images=64)
    log = read(tmp_path / "log.jsonl")
    # The last update before a line began 8 images earlier.
    assert [record["generator/lr"] for record in log] == pytest.approx([1e-3 * at / 33 for at in (9, 25, 33, 33)])
    shares = [8 / 48, 24 / 48, 40 / 48, 56 / 64]
    assert [record["fake/lr"] for record in log] == pytest.approx([1e-3 * (1 + math.cos(math.pi * s)) for s in shares])
    assert [record["generator/updates"] for record in log] == [2, 4, 6, 8]
    assert [record["fake/updates"] for record in log] == [4, 8, 12, 16]


def test_updates_of_an_earlier_version_are_counted(run: Path) -> None:
    folder = run / "checkpoints" / f"{32:012d}"
    described = json.loads((folder / "state.json").read_text())
    assert described.pop("updates") == {"generator": 4, "fake": 4}
    del described["changes"]
    (folder / "state.json").write_text(json.dumps(described))
    manifest = json.loads((folder / "manifest.json").read_text())
    size, digest = (folder / "state.json").stat().st_size, checkpoint.sha256(folder / "state.json")
    manifest["state.json"] = {"bytes": size, "sha256": digest}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    trainers.resume(run, images=48)
    assert read(run / "log.jsonl")[-1]["generator/updates"] == 6
    assert state(run, 48)["updates"] == {"generator": 6, "fake": 6}


def test_memory_is_logged_beside_the_time(run: Path) -> None:
    gib = [record["time"]["peak_memory_gib"] for record in read(run / "log.jsonl")]
    assert 0.05 < gib[0] <= gib[1] < 64
    held = torch.zeros(2**26)  # 256 MiB, which are resident once they are written
    held.fill_(1)
    assert memory.peak_memory(torch.device("cpu")) > 0.25
    status = Path("/proc/self/status")
    if status.is_file():
        kib = int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")))
        assert memory.peak_memory(torch.device("cpu")) == pytest.approx(kib / 2**20, rel=0.05)


def test_trackers_get_the_changes(teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, dict[str, Any]]] = []
    configs: list[dict[str, Any]] = []
    settings = recipe(teachers / "edm", **SHORT, tracking=["tensorboard"])
    monkeypatch.setattr(Accelerator, "init_trackers", lambda self, project, config, more: configs.append(config))
    monkeypatch.setattr(Accelerator, "log", lambda self, numbers, step: sent.append((step, numbers)))
    fit_run(settings, tmp_path)
    trainers.resume(tmp_path, images=48)
    assert [json.loads(config["changes"]) for config in configs] == [[], [change(32, {"images": (32, 48)})]]
    numbers = {name: value for step, each in sent if step == 48 for name, value in each.items()}
    assert numbers["health/ratio"] > 0
    assert numbers["generator/lr"] == 1e-3 and numbers["fake/updates"] == 6 and numbers["peak_memory_gib"] > 0.05


def test_a_card_tells_the_changes(run: Path, tmp_path: Path) -> None:
    trainers.resume(run, images=48, name="a`\n# b", fake={"lr": 2e-3}, allow=["fake"])
    trainers.load(run).export(tmp_path / "export", format="safetensors")
    card = (tmp_path / "export/README.md").read_text()
    told = card[card.index("Settings changed after") :].partition("## Metrics")[0]
    lines = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    assert lines == [change(32, {"name": ("tiny", "a`\n# b"), "images": (32, 48), "fake.lr": (1e-3, 2e-3)})]
    assert told.count("\n# b") == 0
    trainers.resume(run, images=64)
    best = run / "best"
    best.mkdir()
    shutil.copy(run / "checkpoints" / f"{64:012d}" / "ema.safetensors", best)
    of_best = [change(32, {"keep": (1, 2)})]
    facts = {"images": 40, "frechet": 1.0, "teacher": state(run, 64)["teacher"], "changes": of_best}
    (best / "metrics.json").write_text(json.dumps(facts))
    assert [one["images"] for one in trainers.load(run).weights.changes] == [32, 48]
    assert trainers.load(run, "best").weights.changes == of_best


def test_published_changes_have_no_paths_and_no_secrets() -> None:
    moved = change(8, {"data.path": ("/home/alice/one/cats", "/home/alice/two/cats"), "name": ("a", "b")})
    told = change(16, {"teacher": ("/home/alice/old", "/data/new"), "reward.api_key": ("one", "two")})
    removed = {"old": "(removed)", "new": "(removed)"}
    assert public_changes([moved, told, change(24, {"cache": ("/a/x", "/b/x")})]) == [
        change(8, {"name": ("a", "b")}),
        {"images": 16, "changed": {"teacher": {"old": "old", "new": "new"}, "reward.api_key": removed}},
    ]
