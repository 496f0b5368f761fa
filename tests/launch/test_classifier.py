"""distill classifier, and what measures with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.metrics import Classifier
from tests.launch.conftest import Command
from trainers.io.jsonl import read

Write = Callable[..., Path]
OWN_DATA = """
from dataclasses import dataclass

from trainers.data import Digits


@dataclass(frozen=True)
class Mine(Digits):
    pass
"""


def test_from_a_classifier_to_a_distance(distill: Command, recipe_file: Write, tmp_path: Path) -> None:
    """classifier, teacher (measured with it on the way), evaluate under both protocols."""
    file, folder = tmp_path / "classifier.yaml", tmp_path / "c"
    file.write_text("{name: tiny, trains: classifier, images: 512, width: 8}")
    done = distill("classifier", file, "seed=3", "--folder", folder)
    classifier = Classifier.load(folder)
    title = f"classifier-{classifier.hash}"
    accuracy = f"{classifier.accuracy:.2%} right of those held out"
    assert (done.code, done.out) == (0, "")
    assert done.err == f"tiny: 512 of 512 images, {accuracy}\n{title}, {accuracy}: {folder}\n"
    again = distill("classifier", file, "--folder", folder)
    assert (again.code, again.err) == (2, f"distill: '{folder}' exists already: --folder or name= writes another\n")

    changes: dict[str, Any] = {"images": 16, "evaluation": {"every": 8, "samples": 64, "classifier": "../c"}}
    assert distill("teacher", recipe_file(trains="teacher", **changes), "--folder", tmp_path / "t").code == 0
    assert yaml.safe_load((tmp_path / "t/run.yaml").read_text())["evaluation"]["classifier"] == str(folder)
    name = f"{title}(digits, 1797 real)"
    assert [record["protocol"] for record in read(tmp_path / "t/metrics.jsonl")] == [name, name]
    assert distill("evaluate", tmp_path / "t").code == 0
    report = json.loads((tmp_path / "t/evaluation.json").read_text())
    last = read(tmp_path / "t/metrics.jsonl")[-1]
    assert report["protocol"] == name and report["halves"] == last["halves"]
    assert report["teacher"]["frechet"] == pytest.approx(last["frechet"], rel=1e-4)


def test_evaluate_with_another_classifier(distill: Command, teacher_run: Path, tmp_path: Path) -> None:
    classifier = Classifier((1, 8, 8), 10, width=8)
    classifier.save(tmp_path / "c")
    assert distill("evaluate", teacher_run, "--samples", 20, "--classifier", tmp_path / "c").code == 0
    report = json.loads((teacher_run / "evaluation.json").read_text())
    assert report["protocol"] == f"classifier-{classifier.hash}(digits, 1797 real)"


@pytest.mark.parametrize("command", ["train", "teacher"])
def test_a_classifier_of_other_images_is_refused(
    command: str, distill: Command, recipe_file: Write, tmp_path: Path
) -> None:
    """Before anything trains: another shape, other classes, no folder."""
    file, run = recipe_file(trains="teacher" if command == "teacher" else ""), tmp_path / "run"
    for shape, classes in (((1, 28, 28), 10), ((1, 8, 8), 9)):
        Classifier(shape, classes).save(tmp_path / "c")
        refused = distill(command, file, f"evaluation.classifier={tmp_path / 'c'}", "--folder", run)
        assert (refused.code, refused.err) == (
            2,
            f"distill: evaluation.classifier: '{tmp_path / 'c'}' is for {list(shape)} in {classes} classes,"
            " digits has [1, 8, 8] in 10\n",
        )
    missing = distill(command, file, "evaluation.classifier=none", "--folder", run)
    assert missing.err.startswith("distill: classifier: no folder '") and missing.code == 2
    assert not run.exists()


def test_a_recipe_of_another_kind_is_no_classifier(distill: Command) -> None:
    refused = distill("classifier", "digits_teacher")
    assert refused.code == 2 and refused.err.startswith("distill: digits_teacher: this recipe is not for `distill cl")


def test_the_data_that_a_recipe_names_are_its_callers_words(distill: Command) -> None:
    """Outside run folders."""
    Path("my.py").write_text(OWN_DATA)
    Path("run").mkdir()
    Path("run/run.yaml").touch()
    for place in (".", "run"):
        Path(place, "c.yaml").write_text("{name: tiny, trains: classifier, images: 128, width: 8, data: my.py:Mine}")
    refused = distill("classifier", "run/c.yaml", "--folder", "c")
    assert refused.code == 2 and "which runs only with --trust-code" in refused.err
    done = distill("classifier", "c.yaml", "--folder", "c")
    assert done.code == 0, done.err
