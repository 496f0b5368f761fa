"""A run whose best evaluation is too long ago ends, as at its last image, and stays ended."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from distill import UserError
from tests.tiny import distill, experiment, recipe
from tests.trainers.interrupted import fit, lines
from trainers.engine.stopping import STOP, Stopped
from trainers.hooks import evaluate
from trainers.recipe.measures import Evaluation, StopWhen

PROTOCOL = {"protocol": "pca48(digits)", "samples": 33}
RULE = {"every": 16, "samples": 33, "stop_when": {"patience": 32}}


def line(images: int, **values: float) -> dict[str, Any]:
    return {"images": images, **PROTOCOL, **values}


def test_the_rule() -> None:
    lines = [line(16, frechet=3.0, recall=0.2), line(32, frechet=2.0, recall=0.4), line(48, frechet=2.5, recall=0.3)]
    by_distance = Evaluation(every=16, stop_when=StopWhen(patience=32))
    assert evaluate.exhausted(lines, by_distance) is None and evaluate.exhausted([], by_distance) is None
    lines.append(line(64, frechet=2.0, recall=0.5))
    told = "evaluation.stop_when: no better value for 32 images, since frechet 2 at 32 images; best/ has it"
    assert evaluate.exhausted(lines, by_distance) == told
    by_recall = Evaluation(every=16, stop_when=StopWhen(patience=32, metric="recall"))
    assert evaluate.exhausted(lines, by_recall) is None  # the larger, the better
    told = "evaluation.stop_when: no better value for 32 images, since recall 0.5 at 64 images"
    assert evaluate.exhausted([*lines, line(96, recall=0.5)], by_recall) == told
    begun = [line(8, frechet=float("nan")), *lines]
    assert evaluate.exhausted(begun[:4], by_distance) is None  # no number is worse than any
    other = {"images": 80, "protocol": "fid50k", "samples": 33, "frechet": 9.0}
    assert evaluate.exhausted([*lines, other], by_distance) is None  # numbers of another protocol do not count


def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let evaluations find a distance of 1 at first, and of 2 from then on."""
    found = iter([1.0, *[2.0] * 20])
    monkeypatch.setattr(evaluate, "evaluate", lambda *arguments: {"frechet": next(found), **PROTOCOL})


def test_a_run_ends_and_goes_on_without_the_rule(
    teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = recipe(teachers / "edm", images=96, evaluation=RULE, samples_every=1000, log_every=32)
    scripted(monkeypatch)
    assert fit(settings, tmp_path / "run").state.images == 48
    assert "ended at 48 images: evaluation.stop_when: no better value for 32 images" in capsys.readouterr().err
    folder = tmp_path / "run"
    assert (folder / "samples" / f"{48:012d}.png").is_file() and (folder / "checkpoints" / f"{48:012d}").is_dir()
    assert [json.loads(one)["images"] for one in (folder / "metrics.jsonl").read_text().splitlines()] == [16, 32, 48]
    before = lines(folder / "log.jsonl")
    assert fit(settings, folder, resume=True).state.images == 48  # it does not train on
    assert lines(folder / "log.jsonl") == before

    without = {**settings, "evaluation": {key: RULE[key] for key in ("every", "samples")}}
    assert fit(without, folder, resume=True).state.images == 96
    scripted(monkeypatch)
    fit(without, tmp_path / "whole")
    for name in ("generator", "fake", "ema"):
        ours, theirs = (
            run / "checkpoints" / f"{96:012d}" / f"{name}.safetensors" for run in (folder, tmp_path / "whole")
        )
        assert ours.read_bytes() == theirs.read_bytes(), name
    ours, theirs = ([json.loads(one) for one in lines(run / "log.jsonl")] for run in (folder, tmp_path / "whole"))
    assert ours[1].pop("changes")[0]["images"] == 48 and ours == theirs


def test_a_stop_in_the_evaluation_loses_no_hook_of_the_end(
    teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe(teachers / "edm", images=96, evaluation=RULE, samples_every=1000, log_every=16)
    found = iter([1.0, 2.0])

    def stopped(*arguments: object) -> dict[str, Any]:
        if (value := next(found, None)) is None:
            STOP.reason = signal.SIGTERM
            raise Stopped("stopped by SIGTERM")
        return {"frechet": value, **PROTOCOL}

    monkeypatch.setattr(evaluate, "evaluate", stopped)
    folder = tmp_path / "run"
    with pytest.raises(Stopped, match="at 48 images, which are saved"):
        fit(settings, folder)
    STOP._reset()  # as in a process of its own
    monkeypatch.setattr(evaluate, "evaluate", lambda *arguments: {"frechet": 2.0, **PROTOCOL})
    assert fit(settings, folder, resume=True).state.images == 48
    assert (folder / "samples" / f"{48:012d}.png").is_file()
    assert [json.loads(one)["images"] for one in (folder / "log.jsonl").read_text().splitlines()] == [16, 32, 48]
    before = lines(folder / "log.jsonl")
    assert fit(settings, folder, resume=True).state.images == 48
    assert lines(folder / "log.jsonl") == before


def test_two_processes_end_together(teachers: Path, tmp_path: Path) -> None:
    """Both learn of the end that one process decides."""
    rule = {**RULE, "stop_when": {"patience": 16, "metric": "frechet"}, "every": 8}
    settings = recipe(teachers / "edm", images=4000, evaluation=rule, generator={"name": "adam", "lr": 1.0})
    (tmp_path / "tiny.yaml").write_text(json.dumps(settings))
    job = distill(["train", "tiny.yaml", "--folder", "run"], tmp_path / "output.txt", world=2, cwd=tmp_path)
    assert job.finish(timeout=300) == 0, job.text
    assert job.text.count("images: evaluation.stop_when: no better value") == 1, job.text


def test_rules_that_can_never_end_a_run_are_refused(teachers: Path) -> None:
    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(UserError, match=match):
            experiment(recipe(teachers / "edm", evaluation={**RULE, **changes}))

    refused(r"stop_when: needs evaluations; set every$", every=0)
    refused(r"stop_when: patience 8 must be at least every, which is 16$", stop_when={"patience": 8})
    refused(r"patience: must be positive, got 0$", stop_when={"patience": 0})
    refused(
        r"recall is not among the metrics frechet$", metrics=["frechet"], stop_when={"patience": 32, "metric": "recall"}
    )
