"""The lines with which a run begins, and that of an evaluation, against numbers that are counted here."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import build_session, fit_run, recipe, teacher_recipe
from trainers.data import Dataset
from trainers.io.jsonl import read
from trainers.runs.banner import banner, described

DATA = Dataset("shapes", 3, (3, 8, 8), torch.tensor([0, 1, 1]), lambda at: torch.zeros(len(at), 3, 8, 8))


def test_a_distillation_and_a_teacher(teachers: Path) -> None:
    session = build_session(recipe(teachers / "edm", batch_size=4))
    size = sum(one.numel() for one in session.state.players["generator"].bare.parameters())
    assert size > 1_000
    data = "data digits, 1,797 samples of 1x8x8 in 10 classes; checkpoints in 'runs/a/checkpoints'"
    assert banner(session, Path("runs/a")) == [
        f"tiny: a generator of {size:,} parameters on cpu, in float32, batch 4",
        f"tiny: {data}",
    ]
    first, second = banner(build_session(teacher_recipe(precision="float64")), Path("runs/a"))
    assert re.fullmatch(r"tiny: a teacher of [\d,]+ parameters on cpu, in float64, batch \d+", first)
    assert second == f"tiny: {data}"


def test_adapters_are_counted_apart(teachers: Path) -> None:
    adapters = {"lora": {"rank": 2}}
    session = build_session(recipe(teachers / "edm", generator=adapters, fake=adapters))
    player = session.state.players["generator"].bare
    trained = sum(one.numel() for name, one in player.named_parameters() if "lora" in name)
    total = sum(one.numel() for one in player.parameters())
    assert 0 < trained < total
    assert f"a generator of {total:,} parameters, of which {trained:,} train on cpu" in banner(session, Path())[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "shapes, 3 samples of 3x8x8 in 2 classes"),
        ({"class_names": ("disc", "square")}, "shapes, 3 samples of 3x8x8 in 2 classes (0 disc, 1 square)"),
        ({"labels": None}, "shapes, 3 samples of 3x8x8"),
        ({"read": None}, "shapes, of 3x8x8 in 2 classes"),
        ({"labels": None, "read": None, "shape": (), "prompts": ["a", "b", "c"]}, "shapes, 3 prompts"),
    ],
)
def test_data_in_words(changes: dict[str, Any], words: str) -> None:
    assert described(replace(DATA, **changes)) == words


def test_a_run_says_where_it_begins_and_what_it_measures(
    teachers: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The number of an evaluation is that of metrics.jsonl. A resume begins with the same lines."""
    settings = recipe(teachers / "edm", images=16, evaluation={"every": 8, "samples": 64})
    session = fit_run(settings, tmp_path)
    lines = capfd.readouterr().err.splitlines()
    assert lines[:2] == banner(session, tmp_path)
    told = [line for line in lines if line.endswith("by pca48(digits, 1797 real)")]
    assert told == [
        f"tiny: at {one['images']} images frechet {one['frechet']:.4g}  label_agreement {one['label_agreement']:.4g},"
        " by pca48(digits, 1797 real)"
        for one in read(tmp_path / "metrics.jsonl")
    ]
    assert len(told) == 2
    fit_run({**settings, "images": 24}, tmp_path, resume=True)
    assert capfd.readouterr().err.splitlines()[2:4] == banner(session, tmp_path)
