"""A run that was interrupted anywhere and resumed ends in the same bits as one that was not."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from tests.tiny import DISTILLATIONS, DROPOUT, NETWORK, Job, launch, placed, recipe, teacher_recipe
from tests.trainers.interrupted import Cut, assert_same, contents, fit, interrupted, lines
from trainers import loop
from trainers.checkpoints import checkpoint, saver
from trainers.checkpoints.posthoc_ema import snapshots
from trainers.engine import adam8bit
from trainers.engine.session import Session
from trainers.hooks import Checkpoints, CompareSamples, Evaluate, FiniteCheck, Hook, Log, Samples, Snapshots

DROPPING = {"generator": DROPOUT, "fake": DROPOUT}
POWER_EMA = {"stds": [0.1, 0.2], "snapshot_every": 16}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **DISTILLATIONS,
    "one_by_one": ("edm", {"backprop": "one_by_one"}),
    "sid, dropout": ("dropout", {**DROPPING, "objective": {"name": "sid", "alpha": 1.0}}),
    "dropout, reuse_samples": ("dropout", {**DROPPING, "reuse_samples": True}),
    "dropout, two fake updates, reuse_samples": (
        "dropout",
        {**DROPPING, "fake_updates": 2, "reuse_samples": True},
    ),
    "diff_instruct, micro-batches, schedules, clipping": (
        "dropout",
        {
            "objective": "diff_instruct",
            "micro_batches": 2,
            "max_grad_norm": 0.5,
            "generator": {**DROPOUT, "warmup": 64, "decay": "cosine"},
            "fake": {**DROPOUT, "name": "adamw", "betas": [0.9, 0.99], "weight_decay": 0.1, "decay": "linear"},
        },
    ),
    "fgm, two fake updates, momentum": (
        "flow",
        {"objective": "fgm", "fake_updates": 2, "fake": {"name": "sgd", "lr": 1e-4, "betas": [0.9, 0.9]}},
    ),
    "sida, schedule, dropout": (
        "dropout",
        {
            **DROPPING,
            "objective": {"name": "sida", "generator_from": 20, "adversarial_from": 44},
            "reuse_samples": True,
        },
    ),
    "8 bits": ("edm", {name: {"name": "adamw8bit", "lr": 1e-3} for name in ("generator", "fake")}),
    "teacher, 8 bits": ("", {"optimizer": {"name": "adam8bit"}}),
    "bfloat16": ("edm", {"precision": "bfloat16"}),
    "teacher, dropout": ("", {"network": {**NETWORK, "dropout": 0.3}, "label_dropout": 0.5}),
    "power_ema": ("edm", {"power_ema": POWER_EMA}),
    "teacher, power_ema": ("", {"power_ema": POWER_EMA}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_new_session_goes_on_to_the_same_bits(
    variant: str, teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, changes = VARIANTS[variant]
    changes = placed(changes, teachers)
    settings = recipe(teachers / teacher, **changes) if teacher else teacher_recipe(**changes)
    monkeypatch.setattr(adam8bit, "SMALLEST", 64)  # the networks are tiny
    fit(settings, tmp_path / "whole")
    interrupted(settings, tmp_path / "cut", 40, monkeypatch)  # saved at 24, logged until 32
    found, skipped = checkpoint.newest(tmp_path / "cut/checkpoints")
    assert (found.name, skipped) == (f"{24:012d}", [])
    assert load_file(found / "meter.safetensors")  # 24 is no log point: the meter is under way
    assert len(lines(tmp_path / "cut/log.jsonl")) == 2
    if "power_ema" in changes:  # 16 stays, 32 is written again, a later one is dropped
        assert [s.images for s in snapshots(tmp_path / "cut")] == [16, 16, 32, 32]
        (tmp_path / "cut/power_ema" / f"{32:012d}").rename(tmp_path / "cut/power_ema" / f"{33:012d}")
    session = fit(settings, tmp_path / "cut", resume=True)
    assert session.state.images == 96
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_the_comparison_sees_one_number(teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of this file fails when a resume loses anything: here, one element of one optimizer's state."""
    settings = recipe(teachers / "edm")
    fit(settings, tmp_path / "whole")
    interrupted(settings, tmp_path / "cut", 40, monkeypatch)
    restore = checkpoint.restore

    def almost(session: Session, folder: Path) -> None:
        restore(session, folder)
        state = session.state.players["fake"].optimizer.state
        next(iter(state.values()))["exp_avg_sq"].view(-1)[0] *= 1.01

    monkeypatch.setattr(checkpoint, "restore", almost)
    fit(settings, tmp_path / "cut", resume=True)
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("kind", ["generator", "teacher"])
def test_a_complete_run_resumes_to_itself(kind: str, teachers: Path, tmp_path: Path) -> None:
    """A kill may have come between the last checkpoint and the end of older ones."""
    settings = recipe(teachers / "edm", images=32) if kind == "generator" else teacher_recipe(images=32)
    settings["keep"] = 1
    fit(settings, tmp_path / "run")
    before = contents(tmp_path / "run")
    (last,) = checkpoint.folders(tmp_path / "run/checkpoints")
    shutil.copytree(last, last.with_name(f"{8:012d}"))
    fit(settings, tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == before


def test_a_resume_at_the_start_leaves_the_only_checkpoint_alone(
    teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it saves first, until that is in place the old one must stay."""
    settings = recipe(teachers / "edm")
    interrupted(settings, tmp_path / "run", 8, monkeypatch)
    (start,) = checkpoint.folders(tmp_path / "run/checkpoints")
    assert int(start.name) == 0

    def killed(*arguments: Any) -> None:
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(saver.os, "rename", killed)
        with pytest.raises(RuntimeError):
            fit(settings, tmp_path / "run", resume=True)
    assert checkpoint.newest(tmp_path / "run/checkpoints") == (start, [])


def test_checkpoints_are_the_last_of_the_hooks(teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between a checkpoint and a line of the log of the same images would lose the line."""
    given: list[Sequence[Hook]] = []
    monkeypatch.setattr(loop, "call_due", lambda session, hooks, before: given.append(hooks))
    fit(recipe(teachers / "edm"), tmp_path / "run")
    expected = [Log, FiniteCheck, Evaluate, CompareSamples, Samples, Snapshots, Checkpoints]
    assert [type(hook) for hook in given[0]] == expected


# Kills. Saves are made slow, so that a kill can fall into one.

PROGRAM = """
import sys, time
from trainers.checkpoints import saver
sync = saver.sync
saver.sync = lambda path: (time.sleep(0.02), sync(path))
from launch.main import main
main()
"""
KILLED = {
    **DROPPING,
    "power_ema": POWER_EMA,
    "images": 96,
    "log_every": 8,
    "samples_every": 48,
    "evaluation": {"every": 40, "samples": 100},
}


class Victim:
    """A run in processes of its own that gets killed and continued."""

    def __init__(self, settings: dict[str, Any], folder: Path, world: int, seed: int) -> None:
        self.folder, self.world, self.random = folder, world, random.Random(seed)
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.recipe = folder.with_suffix(".yaml")
        self.recipe.write_text(yaml.safe_dump(settings))
        self.kills: list[str] = []

    def start(self) -> Job:
        """Resume where there is something to resume, and start where there is not."""
        try:
            checkpoint.newest(self.folder / "checkpoints")
            arguments = ["resume", str(self.folder)]
        except checkpoint.UserError:
            arguments = ["train", str(self.recipe), "--folder", str(self.folder)]
        return launch(["-c", PROGRAM, *arguments], self.folder.with_suffix(".txt"), self.world)

    def kill(self, moment: str) -> None:
        """Start and kill at a `moment`: start, save or training; only `start` may find nothing to kill."""
        job = self.start()
        if moment == "start":
            time.sleep(self.random.uniform(0, 4))
        elif moment == "save":
            first = len(checkpoint.folders(self.folder / "checkpoints")) == 0
            assert job.wait_for(lambda: self.staging(past_zero=not first)), job.text
            time.sleep(self.random.uniform(0, 0.2))
        else:
            logged = len(self.log()) + self.random.randrange(1, 4)
            assert job.wait_for(lambda: len(self.log()) >= logged), job.text
            time.sleep(self.random.uniform(0, 0.2))
        job.kill()
        if moment == "save":
            assert self.staging(past_zero=False), "the kill missed the save"
        self.kills.append(moment)

    def staging(self, past_zero: bool) -> bool:
        names = [p.name for p in (self.folder / "checkpoints").glob(".staging-*")]
        return any(int(name.removeprefix(".staging-")) > 0 or not past_zero for name in names)

    def log(self) -> list[str]:
        file = self.folder / "log.jsonl"
        return file.read_text().splitlines() if file.is_file() else []

    def survive(self, moments: Sequence[str]) -> None:
        """One kill after the other, then to the end."""
        for moment in moments:
            self.kill(moment)
        job = self.start()
        assert job.finish() == 0, job.text


def killed_run(teachers: Path, folder: Path, world: int, seed: int, moments: Sequence[str]) -> None:
    settings = recipe(teachers / "dropout", **KILLED)
    if world == 1:  # in this process
        fit(settings, folder / "whole")
    else:
        Victim(settings, folder / "whole", world, seed).survive([])
    Victim(settings, folder / "cut", world, seed).survive(moments)
    assert_same(folder / "whole", folder / "cut")
    assert lines(folder / "cut/metrics.jsonl") == lines(folder / "whole/metrics.jsonl")
    assert contents(folder / "cut/best") == contents(folder / "whole/best")


def test_kill_9_at_the_start_in_training_and_while_saving(teachers: Path, tmp_path: Path) -> None:
    killed_run(teachers, tmp_path, world=1, seed=1, moments=["start", "training", "save"])


def test_kill_9_of_two_processes(teachers: Path, tmp_path: Path) -> None:
    killed_run(teachers, tmp_path, world=2, seed=2, moments=["save"])


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_kill_9_many_times(seed: int, world: int, teachers: Path, tmp_path: Path) -> None:
    moments = random.Random(seed).choices(["start", "save", "training"], weights=[1, 2, 2], k=6)
    killed_run(teachers, tmp_path, world, seed, moments)
