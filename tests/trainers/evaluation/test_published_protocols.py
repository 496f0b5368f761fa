"""Evaluations under published protocols, with weights that stand in for the published ones."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.errors import UserError
from distill.metrics import Extracted, FeatureSettings, kernel_distance, precision_recall
from distill.metrics.inception import Inception
from distill.rewards import AestheticReward
from tests.inception import write_stand_in
from tests.tiny import build_session, experiment, fit_run, launch, recipe, shared, teachers
from trainers.data import Digits
from trainers.evaluation import draw_samples, evaluate, fit_protocol
from trainers.evaluation.references import compute_reference, write_reference
from trainers.io.jsonl import read
from trainers.recipe.measures import Evaluation, Scores
from trainers.runs.load import load_trained
from trainers.runs.open import open_run

__all__ = ["shared", "teachers"]
DATA_FREE = {"name": "data_free", "shape": [1, 8, 8], "classes": 10}
FEW = Digits().load()
FEW = replace(FEW, count=40, labels=None if FEW.labels is None else FEW.labels[:40], content=None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_stand_in(tmp_path_factory.mktemp("inception") / "stand-in.pth"))


@pytest.fixture(scope="module")
def stored(weights: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The statistics of 40 digits, in a file."""
    folder = tmp_path_factory.mktemp("reference")
    found = compute_reference(FEW, Inception(weights), str(folder / "cache"), quiet=True)
    write_reference(found, folder / "digits.safetensors")
    return folder / "digits.safetensors"


def settings(weights: str, **changes: Any) -> dict[str, Any]:
    return {"features": {"name": "fid", "weights": weights}, "samples": 16, "every": 8, **changes}


def test_a_run_is_evaluated_while_it_trains_and_after(
    teachers: Path, weights: str, stored: Path, tmp_path: Path
) -> None:
    evaluation = settings(weights, reference=str(stored), best="recall")
    changes = {"data": DATA_FREE, "images": 16, "cache": str(tmp_path / "cache"), "evaluation": evaluation}
    fit_run(recipe(teachers / "edm", **changes), tmp_path / "run")
    lines = read(tmp_path / "run/metrics.jsonl")
    assert [line["images"] for line in lines] == [8, 16]
    name = Inception(weights).name
    for line in lines:
        assert line["protocol"] == f"{name}(digits, 40 real)" and line["samples"] == 16
        assert {"frechet", "inception_score", "precision", "recall"} < line.keys() and "halves" not in line
    best = json.loads((tmp_path / "run/best/metrics.json").read_text())
    assert best["recall"] == max(line["recall"] for line in lines)
    trained = load_trained(tmp_path / "run")
    report = trained.evaluate()
    assert report["student"]["frechet"] == pytest.approx(lines[-1]["frechet"], rel=1e-6)
    assert report["ratio"] == report["student"]["frechet"] / report["teacher"]["frechet"]

    shutil.rmtree(tmp_path / "cache/evaluations")  # so that two processes measure the teacher, too
    program = tmp_path / "program.py"
    program.write_text(f"import trainers\ntrainers.load({str(tmp_path / 'run')!r}).evaluate()\n")
    job = launch([str(program)], tmp_path / "output.txt", world=2)
    assert job.finish() == 0, job.text
    divided = json.loads((tmp_path / "run/evaluation.json").read_text())
    for model in ("student", "teacher"):
        assert divided[model] == pytest.approx(report[model], rel=1e-6)


def test_the_teacher_is_measured_once(
    teachers: Path, weights: str, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers are kept for every run of it, until anything that they depend on changes."""
    cache = str(tmp_path / "cache")
    changes = {"images": 8, "cache": cache, "evaluation": {"samples": 16, "components": 8}}
    for name in ("a", "b"):
        fit_run(recipe(teachers / "edm", **changes, seed=0), tmp_path / name)
    measured = list[str]()
    from trainers.runs import compare as comparison

    sampled = comparison.make_image_sampler
    monkeypatch.setattr(comparison, "make_image_sampler", lambda *given: (measured.append("x"), sampled(*given))[1])
    first = load_trained(tmp_path / "a").evaluate()
    assert len(measured) == 2
    assert load_trained(tmp_path / "b").evaluate()["teacher"] == first["teacher"]
    assert len(measured) == 3  # the student of b alone
    assert load_trained(tmp_path / "b").evaluate(samples=18)["teacher"] != first["teacher"]
    assert len(measured) == 5
    assert "teacher" not in load_trained(tmp_path / "b").evaluate(student_only=True)
    assert len(measured) == 6


def test_the_numbers_are_those_of_the_samples(teachers: Path, weights: str, tmp_path: Path) -> None:
    session = build_session(recipe(teachers / "edm"))
    changes: dict[str, Any] = {"samples": 20, "batch_size": 7}
    asked = experiment(recipe(teachers / "edm", evaluation=settings(weights, **changes))).evaluation
    protocol = fit_protocol(FEW, asked, str(tmp_path))
    assert protocol.metrics == {"frechet", "inception_score", "precision", "recall"}  # KID takes 1,000 of each
    report = evaluate(session.sampler, session.dataset, protocol, asked, 0, session.accelerator)
    images, _ = draw_samples(session.sampler, session.dataset, torch.arange(20), 0)
    network = Inception(weights)
    generated = network.extract(images).features
    real = network.extract(FEW.images(torch.arange(40))).features
    assert (report["precision"], report["recall"]) == precision_recall(generated, real)
    assert report["frechet"] == pytest.approx(protocol.distance(images), rel=1e-6)
    assert kernel_distance(generated, real, 5, 10)[0] > 0


@dataclass(frozen=True)
class Mine(FeatureSettings):
    """Features of the user's own: the mean of each row of pixels."""

    scale: float = 1.0

    def load(self) -> Rows:
        return Rows(self.scale)


@dataclass
class Rows:
    scale: float
    labels: Tensor | None = None
    logits: bool = False

    @property
    def name(self) -> str:
        return f"rows{self.scale:g}"

    def to(self, device: torch.device) -> Rows:
        return self

    def extract(self, images: Tensor, labelled: bool = False) -> Extracted:
        return Extracted(self.scale * images.mean(dim=(1, 3)))


def test_features_of_the_users_own(tmp_path: Path) -> None:
    asked = Evaluation(features=Mine(2.0), samples=50, metrics=("frechet", "recall"))
    protocol = fit_protocol(FEW, asked, str(tmp_path))
    assert protocol.name == "rows2(digits, 40 real)" and protocol.distance(FEW.images(torch.arange(40))) < 1e-9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "none.pth"}, r"^Inception: no weights 'none.pth'; `curl -L --create-dirs -o none.pth https://"),
        ({"reference": "none.npz"}, r"^reference: no file 'none.npz'; `distill reference DATA --out none.safet"),
        ({"metrics": ["frechet", "kid"]}, r"^evaluation.metrics: fid-\w+\(digits, 40 real\) cannot measure kid here"),
        ({"best": "kid"}, r"^evaluation.best: fid-\w+\(digits, 40 real\) does not measure kid$"),
    ],
)
def test_what_an_evaluation_lacks_is_known_before_training(
    teachers: Path, weights: str, stored: Path, changes: dict[str, Any], message: str
) -> None:
    asked = {**settings(weights, reference=str(stored)), **changes}
    if "weights" in asked:
        asked["features"] = {"name": "fid", "weights": asked.pop("weights")}
    with pytest.raises(UserError, match=message):
        open_run(experiment(recipe(teachers / "edm", images=16, data=DATA_FREE, evaluation=asked)), 1)
    open_run(experiment(recipe(teachers / "edm", images=16, data=DATA_FREE, evaluation={**asked, "every": 0})), 1)


def test_statistics_of_other_real_images_are_refused(teachers: Path, weights: str, stored: Path) -> None:
    """The run's data are all 1,797 digits."""
    with pytest.raises(UserError, match=r"digits.safetensors' is of other images than data: digits$"):
        open_run(
            experiment(recipe(teachers / "edm", images=16, evaluation=settings(weights, reference=str(stored)))), 1
        )


def test_what_a_caller_asks_for_replaces_the_recipes() -> None:
    ours = Evaluation(every=5, samples=64, classifier="c")
    fid = ours.asked(protocol="fid10k")
    assert (fid.count, fid.classifier, type(fid.features).__name__) == (10_000, None, "InceptionFeatures")
    assert ours.asked(protocol="fid10k", samples=7).count == 7
    assert ours.asked(7).classifier == "c" and ours.asked(classifier="d").count == 64
    scores = Scores(aesthetic=AestheticReward(clip="c", head="h"))
    painted = Evaluation(
        protocol="fid30k", prompts="p.txt", scores=scores, resize=256, reference="r.npz", best="aesthetic"
    )
    few = painted.asked(protocol="fid10k")
    assert (few.prompts, few.scores, few.resize, few.reference) == ("p.txt", scores, 256, "r.npz")
    assert (few.count, few.best) == (10_000, "frechet")
    assert painted.asked(classifier="d").prompts == "p.txt" and painted.asked(classifier="d").resize is None
    with pytest.raises(UserError, match=r"^classifier: has features of its own; leave out the protocol$"):
        ours.asked(classifier="d", protocol="fid10k")
    named = replace(Evaluation(), features=replace(fid.features, weights="w"))  # type: ignore[type-var]
    assert named.asked(protocol="fid50k").features == named.features
    with pytest.raises(UserError, match=r"^reference: needs features"):
        ours.asked(reference="r.npz")
