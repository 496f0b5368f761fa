"""The files that describe averaged weights and evaluations, where they are damaged."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import pytest
import torch

from distill.errors import UserError
from distill.records import read_record
from trainers.checkpoints.formats import Posthoc, read_best
from trainers.checkpoints.posthoc_ema import rewind_snapshots, snapshots
from trainers.hooks.evaluate import best_value
from trainers.recipe.measures import Evaluation
from trainers.recipe.run import Embeddings
from trainers.runs import compare as comparison
from trainers.runs.export import metrics_of
from trainers.runs.trained_model import TrainedModel

BEST = {"images": 40, "frechet": 2.5, "protocol": "a", "samples": 8, "halves": math.nan, "teacher": None}
POSTHOC = {
    "images": 40,
    "std": 0.1,
    "left": 0.01,
    "teacher": "ab",
    "snapshots": [{"images": 40, "std": 0.05, "coefficient": -1.5}],
}
REPORT = {
    "protocol": "a",
    "samples": 8,
    "images": 40,
    "average": "ema",
    "halves": math.nan,
    "student": {"frechet": 2.0},
    "teacher": {"frechet": 1.0},
    "ratio": 2.0,
}


def test_what_a_run_writes_is_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps(BEST))
    assert read_best(tmp_path)["frechet"] == best_value(tmp_path / "metrics.json", "frechet", BEST) == 2.5
    (tmp_path / "posthoc.json").write_text(json.dumps(POSTHOC))
    assert read_record(tmp_path / "posthoc.json", Posthoc) == POSTHOC


BROKEN: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "images": ("key 'images': must be a valid integer, got '40'", lambda d: d.update(images="40")),
    "images below 0": ("key 'images': must be greater than or equal to 0, got -1", lambda d: d.update(images=-1)),
    "no images": ("key 'images': is missing", lambda d: d.pop("images")),
    "teacher": ("key 'teacher': must be a valid string, got [1]", lambda d: d.update(teacher=[1])),
}


def no_number(description: dict[str, Any]) -> None:
    description["frechet" if "frechet" in description else "std"] = math.nan


@pytest.mark.parametrize("how", [*BROKEN, "nan", "a pipe"])
def test_a_damaged_description_is_refused(how: str, tmp_path: Path) -> None:
    if how == "a pipe":
        os.mkfifo(tmp_path / "metrics.json")
        os.mkfifo(tmp_path / "posthoc.json")
        message = "cannot be read: it is no regular file"
    else:
        best, posthoc = dict(BEST), dict(POSTHOC)
        problem, change = BROKEN.get(how, ("key '(frechet|std)': must be a finite number, got nan", no_number))
        change(best)
        change(posthoc)
        (tmp_path / "metrics.json").write_text(json.dumps(best))
        (tmp_path / "posthoc.json").write_text(json.dumps(posthoc))
        message = f"is damaged: {problem}"
    with pytest.raises(UserError, match="^'{}' {}".format(tmp_path / "metrics.json", message.replace("[", r"\["))):
        read_best(tmp_path)
    with pytest.raises(UserError, match="^'{}' {}".format(tmp_path / "posthoc.json", message.replace("[", r"\["))):
        read_record(tmp_path / "posthoc.json", Posthoc)
    assert best_value(tmp_path / "metrics.json", "frechet", BEST) is None


def test_an_evaluation_is_that_of_the_weights(tmp_path: Path) -> None:
    trained = cast(TrainedModel, SimpleNamespace(folder=tmp_path, images=40, average="ema"))
    file = tmp_path / "evaluation.json"
    assert metrics_of(trained) is None
    for change in ({"images": 41}, {"average": "another"}):
        file.write_text(json.dumps({**REPORT, **change}))
        assert metrics_of(trained) is None
    file.write_text(json.dumps(REPORT))
    found = metrics_of(trained)
    assert found is not None
    assert (found["student"], found["teacher"], found["samples"]) == ({"frechet": 2.0}, {"frechet": 1.0}, 8)
    for text, problem in (
        ("{", "it is no JSON"),
        (json.dumps({**REPORT, "student": 3}), "key 'student': must be an ob"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=f"^'{file}' is damaged: {problem}"):
            metrics_of(trained)


def test_files_that_are_no_snapshots_are_left_out(tmp_path: Path) -> None:
    names = ("0.05.safetensors", "nan.safetensors", "abc.safetensors", "-1.safetensors", "2.safetensors")
    for folder in ("8", "\u00b2", "\u0663", "x"):
        for name in names:
            (tmp_path / "power_ema" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "power_ema" / folder / name).touch()
    assert [(one.images, one.std) for one in snapshots(tmp_path)] == [(8, 0.05)]
    rewind_snapshots(tmp_path, 8)
    assert [folder.name for folder in (tmp_path / "power_ema").iterdir()] == ["8"]


def test_half_an_evaluation_replaces_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(file: Path, text: str) -> int:
        file.write_bytes(text.encode()[:40])
        raise KeyboardInterrupt

    for name in ("check_images", "make_image_sampler"):
        monkeypatch.setattr(comparison, name, MagicMock())
    monkeypatch.setattr(comparison, "evaluate", lambda *_: {"frechet": 1.0})
    monkeypatch.setattr(comparison, "fit_protocol", lambda *_: SimpleNamespace(name="a", halves=1.0, real=object()))
    monkeypatch.setattr(comparison, "_teacher_numbers", lambda *_: {"frechet": 2.0})
    trained = MagicMock(folder=tmp_path, images=40, average="ema", device=torch.device("cpu"))
    trained.run.sampler.calls, trained.run.precision, trained.run.embeddings = 35, "float32", Embeddings()
    report = comparison.compare(trained, Evaluation(samples=8))
    assert read_record(tmp_path / "evaluation.json", comparison.Comparison) == report
    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        comparison.compare(trained, Evaluation(samples=8))
    assert json.loads((tmp_path / "evaluation.json").read_text()) == report
    assert [file.name for file in tmp_path.iterdir()] == ["evaluation.json"]
