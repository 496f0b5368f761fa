"""The evaluation of samples by their prompts, on a tiny teacher of prompts and a tiny CLIP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distill.conditions import Condition
from distill.errors import UserError
from distill.metrics.images import as_bytes, resized
from distill.metrics.inception import Inception
from distill.random import Random
from distill.rewards import text_scores
from tests.distill.rewards.test_clip import write_clip
from tests.inception import write_stand_in
from tests.texts import install, write_text_teacher
from tests.tiny import experiment, fit_run, recipe, shared, teachers
from trainers.data import Dataset
from trainers.data.batches import unit_noise
from trainers.evaluation.references import compute_reference, write_reference
from trainers.io.jsonl import read
from trainers.runs.load import load_trained
from trainers.runs.open import open_run

__all__ = ["shared", "teachers"]
CAPTIONS = [f"a caption {number}" for number in range(5)]


@pytest.fixture
def painter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The recipe of a distillation of a teacher of prompts."""
    install(monkeypatch)
    write_clip(tmp_path / "clip")
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS))
    write_text_teacher(tmp_path / "teacher", tmp_path / "log", shape=[3, 8, 8])
    changes = {"data": {"name": "prompts", "path": str(tmp_path / "p.txt")}, "cache": str(tmp_path / "cache")}
    changes |= {"images": 8, "samples_every": 8, "objective": "diff_instruct"}
    return recipe(tmp_path / "teacher", **changes)


def scored(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    scores = {"clip_score": {"clip": str(tmp_path / "clip")}}
    return {"every": 8, "samples": 7, "batch_size": 3, "scores": scores, "best": "clip_score", **changes}


def test_samples_are_scored_by_captions_in_order(painter: dict[str, Any], tmp_path: Path) -> None:
    """Without real images the scores are all that is measured: 7 samples of 5 captions, the first two again."""
    evaluation = scored(tmp_path, prompts=str(tmp_path / "captions.txt"))
    fit_run({**painter, "images": 24, "evaluation": evaluation}, tmp_path / "run")
    lines = read(tmp_path / "run/metrics.jsonl")
    line = lines[-1]
    assert line["protocol"] == "clip_score(clip)" and "frechet" not in line
    best = json.loads((tmp_path / "run/best/metrics.json").read_text())
    assert best["clip_score"] == max(line["clip_score"] for line in lines) and len(lines) == 3
    assert load_trained(tmp_path / "run", "best").images == best["images"]
    trained = load_trained(tmp_path / "run")
    report = trained.evaluate()
    assert report["student"] == {"clip_score": pytest.approx(line["clip_score"], rel=1e-6)} and "ratio" not in report
    assert report["teacher"].keys() == {"clip_score"}
    numbers, texts = torch.arange(7), [CAPTIONS[number % 5] for number in range(7)]
    encoder = trained.denoiser.network.text_encoder
    assert encoder is not None
    noise = unit_noise((3, 8, 8), Random.at(0, numbers).stream("evaluation"))
    images = trained.sampler(noise, Condition(encoder.encode(texts)))
    wanted = text_scores("clip_score", clip=str(tmp_path / "clip")).score(images, texts).mean
    assert line["clip_score"] == pytest.approx(wanted, rel=1e-5)


def test_samples_are_scored_by_the_prompts_of_the_data(painter: dict[str, Any], tmp_path: Path) -> None:
    fit_run({**painter, "evaluation": scored(tmp_path)}, tmp_path / "run")
    (line,) = read(tmp_path / "run/metrics.jsonl")
    assert 0 < line["clip_score"] < 100 and line["samples"] == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"best": "frechet"}, r"^evaluation.best: frechet is not measured, p.txt has no real images; name one of clip"),
        (
            {"scores": {}, "best": "frechet"},
            r"^evaluation: needs real images, data: p.txt has none; name eval",
        ),
    ],
)
def test_what_prompts_alone_do_not_give(
    painter: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        open_run(experiment({**painter, "evaluation": scored(tmp_path, **changes)}), 1)


def test_scores_need_prompts(teachers: Path, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip")
    with pytest.raises(UserError, match=r"^evaluation.scores: clip_score reads prompts, data: digits has none$"):
        open_run(experiment(recipe(teachers / "edm", images=8, evaluation=scored(tmp_path))), 1)
    given = scored(tmp_path)
    given["scores"]["clip_score"]["prompts"] = ["a digit"]
    with pytest.raises(UserError, match=r"clip_score.prompts: leave them out; each sample has its own"):
        experiment(recipe(teachers / "edm", images=8, evaluation=given))


def test_samples_are_resized_before_their_features(painter: dict[str, Any], tmp_path: Path) -> None:
    weights = write_stand_in(tmp_path / "inception.pth")
    pictures = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    real = Dataset("pictures", 6, (3, 16, 16), None, lambda at: pictures[at], content=lambda: "a hash")
    stored = compute_reference(real, Inception(weights), str(tmp_path / "cache"), quiet=True)
    write_reference(stored, tmp_path / "real.safetensors")
    features = {"features": {"name": "fid", "weights": str(weights)}, "reference": str(tmp_path / "real.safetensors")}
    with pytest.raises(UserError, match=r"real.safetensors' is of 16x16 pixels, the samples have 8x8$"):
        open_run(experiment({**painter, "evaluation": scored(tmp_path, **features)}), 1)
    fit_run({**painter, "evaluation": scored(tmp_path, **features, resize=16)}, tmp_path / "run")
    (line,) = read(tmp_path / "run/metrics.jsonl")
    assert line["protocol"] == f"{Inception(weights).name}@16(pictures, 6 real) + clip_score(clip)"
    assert line["frechet"] > 0 and 0 < line["clip_score"] < 100


def test_resizing_is_that_of_pillow() -> None:
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    small = as_bytes(resized(pictures, 8), "x")[1].permute(1, 2, 0)
    picture = Image.fromarray(as_bytes(pictures, "x")[1].permute(1, 2, 0).numpy())
    assert np.array_equal(small.numpy(), np.array(picture.resize((8, 8), Image.Resampling.LANCZOS)))
