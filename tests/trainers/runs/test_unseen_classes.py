"""Classes of which the data have no sample: exports do not draw them, and their cards say so."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import trainers
from tests.tiny import recipe
from trainers.data import Dataset

UNSEEN = (3, 9)


def test_exports_draw_the_classes_of_the_data(teachers: Path, tmp_path: Path) -> None:
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([label for label in range(10) if label not in UNSEEN] * 5)
    names = tuple("abcdefghij")
    data = Dataset("some", 40, (1, 8, 8), labels, lambda at: images[at], class_names=names)
    settings = recipe(teachers / "edm", images=8, evaluation={"every": 0}, entry={"nsr": 2.5})
    trainers.train(settings, tmp_path / "run", data=data)
    state = json.loads((tmp_path / "run/checkpoints" / f"{8:012d}" / "state.json").read_text())
    assert state["data"]["unseen"] == list(UNSEEN)
    trained = trainers.load(tmp_path / "run", data=data)
    assert trained.generator.denoiser.network.unseen == UNSEEN
    for format in ("diffusers", "safetensors"):
        trained.export(tmp_path / format, format)
        card = (tmp_path / format / "README.md").read_text()
        assert "- The data had no sample of these classes, which the generator was not trained on: 3, 9.\n" in card
        assert "[0, 1, 2, 4, 5, 6, 7, 8]" in card  # the labels of its Python lines
    index = json.loads((tmp_path / "diffusers/model_index.json").read_text())
    assert index["drawn"] == [0, 1, 2, 4, 5, 6, 7, 8] and index["classes"] == 10


def test_all_classes_are_seen_in_other_data() -> None:
    labels = torch.arange(10)
    assert "unseen" not in Dataset("all", 10, (1, 8, 8), labels, None).digest
    assert Dataset("some", 10, (1, 8, 8), labels * 2, None).digest["unseen"] == [1, 3, 5, 7, 9, 11, 13, 15, 17]
