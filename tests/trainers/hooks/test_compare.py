"""The comparison of a student with its teacher while it trains: what is drawn, kept, written and warned of."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from distill.conditions import Condition
from distill.guidance import classifier_free
from distill.metrics.sample_statistics import compare_samples
from distill.objectives import Denoisers
from distill.random import Random
from distill.sampling import sample
from tests.tiny import build_session, distill, distillation, fit_run, recipe
from tests.trainers.interrupted import interrupted
from trainers.data.batches import unit_noise
from trainers.engine.session import Session
from trainers.engine.stopping import STOP, Stopped
from trainers.hooks.health import CompareSamples
from trainers.io.images import grid, to_images
from trainers.io.jsonl import read

ALONE = {"images": 48, "checkpoint_every": 16, "log_every": 16, "samples_every": 48}


def drawn(session: Session, count: int) -> tuple[Tensor, Condition, Tensor]:
    """Noise, conditions and groups of a comparison, by themselves."""
    groups = torch.arange(count) % min(10, count // 2)
    noise = unit_noise((1, 8, 8), Random.at(session.run.seed, torch.arange(count)).stream("health"))
    return noise, Condition(labels=groups * 10 // min(10, count // 2)), groups


@pytest.mark.parametrize(("ramp_up", "averaged"), [(0.05, True), (0, False)])
def test_a_comparison_is_of_the_student_and_the_teacher(
    ramp_up: float, averaged: bool, teachers: Path, tmp_path: Path
) -> None:
    """On the same noise and conditions, with the numbers of compare_samples. An average that lags is not taken."""
    settings = recipe(teachers / "edm", **ALONE, ema={"half_life": 1e6, "ramp_up": ramp_up}, health={"samples": 10})
    session = fit_run(settings, tmp_path)
    noise, cond, groups = drawn(session, 10)
    assert cond.labels is not None and cond.labels.tolist() == [0, 2, 4, 6, 8] * 2
    assert session.teacher is not None
    teacher = sample(session.teacher, noise, cond)
    kept = load_file(tmp_path / "health.safetensors")
    assert torch.allclose(next(iter(kept.values())), teacher, atol=1e-5)
    with torch.no_grad():
        model = session.model if averaged else session.state.players["generator"].bare
        student = cast(Tensor, cast(Any, model)(noise, cond))
    lines = read(tmp_path / "health.jsonl")
    assert [line["images"] for line in lines] == [0, 40, 48]
    wanted = compare_samples(student, teacher, groups)
    assert {key: lines[-1][key] for key in wanted} == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    rows = torch.stack([teacher[:5], student[:5], teacher[5:], student[5:]]).flatten(0, 1)
    drawn_picture = grid(to_images(rows, session.model), 5, captions=[])
    assert np.abs(np.subtract(Image.open(tmp_path / "comparison.png"), drawn_picture, dtype=int)).max() <= 1
    assert lines[-1]["ratio"] == pytest.approx(lines[-1]["distance"] / lines[0]["distance"])


def test_the_size_and_the_pace_follow_from_the_run(teachers: Path, tmp_path: Path) -> None:
    def of(**changes: Any) -> tuple[int, int, int]:
        hook = CompareSamples(build_session(recipe(teachers / "edm", **changes)), tmp_path)
        return hook.count, hook.every, hook.groups

    assert of(images=96) == (4, 16, 2)
    assert of(images=20_000) == (256, 1_024, 10)
    assert of(images=1_000_000) == (256, 10_000, 10)
    assert of(images=1_000_000, health={"samples": 30, "every": 7}) == (30, 7, 10)
    session = build_session(recipe(teachers / "edm", images=1_000_000))
    session.dataset = replace(session.dataset, shape=(16, 128, 128))
    assert CompareSamples(session, tmp_path).count == 64


def test_it_changes_nothing_that_is_trained(teachers: Path, tmp_path: Path) -> None:
    with_health = fit_run(recipe(teachers / "edm", **ALONE, health={"every": 8, "samples": 8}), tmp_path / "with")
    without = fit_run(recipe(teachers / "edm", **ALONE, health={"every": 0}), tmp_path / "without")
    assert not list((tmp_path / "without").glob("health*"))
    for name, player in with_health.state.players.items():
        for ours, other in zip(player.parameters, without.state.players[name].parameters, strict=True):
            assert torch.equal(ours, other)


@pytest.mark.parametrize("left", ["kept", "missing", "damaged", "of another seed"])
def test_a_resume_writes_the_same_lines(
    left: str, teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher's samples are read, or made again to the same bits."""
    settings = recipe(teachers / "edm", **ALONE, health={"every": 16, "samples": 8})
    fit_run(settings, tmp_path / "whole")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    interrupted(settings, cut, 32, monkeypatch)
    file, before = cut / "health.safetensors", (cut / "health.safetensors").stat()
    if left == "missing":
        file.unlink()
    elif left == "damaged":
        file.write_bytes(file.read_bytes()[:-1])
    elif left == "of another seed":
        fit_run({**settings, "seed": 1}, tmp_path / "other")
        file.write_bytes((tmp_path / "other" / file.name).read_bytes())
    fit_run(settings, cut, resume=True)
    assert (cut / "health.jsonl").read_text() == (whole / "health.jsonl").read_text()
    assert file.read_bytes() == (whole / file.name).read_bytes()
    assert (file.stat().st_mtime_ns == before.st_mtime_ns) == (left == "kept")


def test_a_comparison_that_was_cut_comes_again_once(
    teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before training, after which the checkpoint is that of the start; and one in which a stop came."""
    settings = recipe(teachers / "edm", **ALONE, health={"every": 16, "samples": 8})
    fit_run(settings, tmp_path / "whole")
    cut, call = tmp_path / "cut", CompareSamples.__call__

    def end_after(at: int, error: type[Exception]) -> None:
        def call_and_end(hook: CompareSamples, session: Session) -> None:
            call(hook, session)
            if session.state.images == at:
                if error is Stopped:
                    os.kill(os.getpid(), signal.SIGTERM)
                    STOP.poll()
                raise error

        with monkeypatch.context() as patch, pytest.raises(error), STOP.listening():
            patch.setattr(CompareSamples, "__call__", call_and_end)
            fit_run(settings, cut, resume=cut.exists())

    end_after(0, KeyError)
    assert [line["images"] for line in read(cut / "health.jsonl")] == [0]
    end_after(32, Stopped)
    assert [line["images"] for line in read(cut / "health.jsonl")] == [0, 16, 32]
    fit_run(settings, cut, resume=True)
    assert (cut / "health.jsonl").read_text() == (tmp_path / "whole" / "health.jsonl").read_text()


@pytest.mark.parametrize("sharding", [None, {}], ids=["replicated", "sharded"])
def test_two_processes_give_the_same_numbers(sharding: dict[str, Any] | None, teachers: Path, tmp_path: Path) -> None:
    settings = recipe(
        teachers / "edm",
        **ALONE,
        precision="float64",
        health={"samples": 7},
        evaluation={"every": 0},
        sharding=sharding,
    )
    fit_run({**settings, "sharding": None}, tmp_path / "one")
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    job = distill(["train", "run.yaml", "--folder", "two"], tmp_path / "output", world=2, cwd=tmp_path)
    assert job.finish() == 0, job.text
    one, two = (read(tmp_path / name / "health.jsonl") for name in ("one", "two"))
    assert len(one) == len(two) == 3
    for ours, other in zip(one, two, strict=True):
        assert ours == pytest.approx(other, rel=1e-4, abs=1e-6)


def test_a_run_that_gets_worse_warns_with_the_cure(
    teachers: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """At an absurd rate of the generator, after a few updates; the alarm is in the file and on the console."""
    settings = recipe(teachers / "edm", **ALONE, generator={"lr": 0.3}, health={"every": 16, "samples": 64})
    fit_run(settings, tmp_path)
    lines = read(tmp_path / "health.jsonl")
    (first,) = [line for line in lines if "worse-than-start" in "".join(line.get("alarms", []))]
    assert first["images"] == 16 and first["distance"] > 1.1 * lines[0]["distance"] + 0.02
    (alarm,) = [text for text in first["alarms"] if "worse-than-start" in text]
    assert "Lower generator.lr to a third" in alarm
    assert capfd.readouterr().err.count(f"alarm at 16 images: {alarm}\n") == 1


GUIDED = {"name": "guided", "teacher_cfg": 3.0, "fake_cfg": 2.0, "fake_training_cfg": 1.0, "objective": "sid"}


@pytest.mark.parametrize(
    ("objective", "scale"),
    [
        ({**GUIDED, "fake_training_cfg": 2.0}, 3.0),  # LSG: an exact fake of a guided teacher
        ({**GUIDED, "fake_cfg": 3.0}, 1.0),  # a fake that is guided as much: the teacher's own law
        (GUIDED, 1.5),
        ({"name": "decoupled", "teacher_cfg": 2.5, "objective": "diff_instruct"}, 2.5),
    ],
)
def test_a_guided_student_is_held_to_the_guided_teacher(
    objective: dict[str, Any], scale: float, teachers: Path
) -> None:
    session = build_session(recipe(teachers / "null", objective=objective))
    nets = cast(Denoisers, session.nets)
    target = cast(Any, session.run).objective.target(nets.teacher, nets.frozen)
    noise, cond, _ = drawn(session, 8)
    wanted = classifier_free(nets.teacher, scale, nets.teacher.null)(noise, torch.ones(8), cond)
    assert target.scale == scale and torch.allclose(target(noise, torch.ones(8), cond), wanted)


def test_an_autoguided_student_is_held_to_its_target(teachers: Path, tmp_path: Path) -> None:
    session = build_session(distillation("autoguided", teachers))
    nets, objective = cast(Denoisers, session.nets), cast(Any, session.run).objective
    noise, cond, _ = drawn(session, 8)
    strong, weak = (one(noise, torch.ones(8), cond) for one in (nets.teacher, nets.frozen["weak_teacher"]))
    target = objective.target(nets.teacher, nets.frozen)
    assert torch.allclose(target(noise, torch.ones(8), cond), weak + 2 * (strong - weak), atol=1e-6)
    assert objective.target(nets.teacher) is nets.teacher
