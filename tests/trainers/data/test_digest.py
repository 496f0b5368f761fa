"""Other data on a resume are noticed, and accepted by the key `data` alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import trainers
from distill.errors import UserError
from tests.tiny import teacher_recipe
from trainers.data import Dataset, Images
from trainers.data.digest import _equal, accepted_data


def dataset(count: int = 40, shift: float = 0.0, **changes: Any) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(count, 3, 4, 4, generator=generator) + shift).clamp(-1, 1)
    labels = torch.arange(count) % 2
    settings: dict[str, Any] = {"name": "set", "count": count, "shape": (3, 4, 4), "labels": labels}
    return Dataset(**(settings | {"read": lambda at: images[at]} | changes))


@pytest.mark.parametrize(
    ("now", "found"),
    [
        (dataset(20), "count 20, not 40, other labels"),
        (dataset(labels=None), "classes 0, not 2"),
        (dataset(labels=1 - torch.arange(40) % 2), "other labels"),
        (dataset(shift=-1), "other pixels"),
        (dataset(shift=-0.1), "other pixels"),
        (dataset(shape=(1, 4, 4)), "shape [1, 4, 4], not [3, 4, 4]"),
    ],
)
def test_other_data_are_refused_or_accepted(now: Dataset, found: str) -> None:
    before = json.loads(json.dumps(dataset().digest))
    with pytest.raises(UserError) as caught:
        accepted_data(before, now, "run", ["images"])
    told = f"data: 'set' is not what 'run' was trained on: {found}"
    assert str(caught.value) == f"{told}; this would change what is trained; --allow data accepts it"
    for key in ("data", "data.path"):
        assert accepted_data(before, now, "run", [key]) == [f"changed since the checkpoint: {told}"]


def test_the_same_data_are_accepted() -> None:
    before = json.loads(json.dumps(dataset().digest))
    assert len(before["samples"]) == 16 and len(before["samples"][0]) == 8
    assert accepted_data(before, dataset(), "run") == []
    assert accepted_data(before, dataset(shift=1 / 255), "run") == []  # another decoder of JPEG
    assert accepted_data(before, dataset(class_names=("a", "b")), "run") == []
    broken = [None, *before["samples"][1:]]  # a sample that is not finite, on both sides
    assert _equal({**before, "samples": broken}, {**before, "samples": broken}, "samples")
    for older in (None, {}, [], {"count": 40}):
        assert accepted_data(older, dataset(), "run") == []
    with pytest.raises(UserError, match="other pixels"):
        accepted_data({**before, "samples": "x"}, dataset(), "run")


def test_the_order_of_earlier_versions_is_noticed() -> None:
    """They had no digest, and numbered the folders 1, 2, 10 by letter. Names that the data state are as they were."""
    numbered = dataset(class_names=("1", "2", "10"))
    with pytest.raises(UserError, match=r"trained on: classes in the order 1, 2, 10, not 1, 10, 2; .* --allow data"):
        accepted_data(None, numbered, "run")
    assert len(accepted_data(None, numbered, "run", ["data"])) == 1
    assert accepted_data(numbered.digest, numbered, "run") == []
    for names in (("01", "02", "10"), ("zebra", "ape"), ("10", "2")):
        assert accepted_data(None, dataset(class_names=names), "run") == []


def test_a_resume_notices_another_order_of_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for number, name in enumerate(("1", "2", "10")):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("L", (8, 8), 80 * number).save(tmp_path / "set" / name / "0.png")
    data = Images(str(tmp_path / "set"), resolution=8, mode="L")
    now = data.load()
    assert now.class_names == ("1", "2", "10") and now.labels is not None and now.labels.tolist() == [0, 2, 1]
    with monkeypatch.context() as earlier:
        earlier.setattr("trainers.data.labels.in_order", sorted)
        earlier.setattr("trainers.data.folders.in_order", sorted)
        before = data.load()
    assert before.class_names == ("1", "10", "2")
    with pytest.raises(UserError, match="trained on: other labels; "):
        accepted_data(before.digest, now, "run")


def test_other_prompts_are_noticed() -> None:
    one = dataset(read=None, labels=None, prompts=["a", "b"])
    other = dataset(read=None, labels=None, prompts=["a", "c"])
    with pytest.raises(UserError, match="other prompts"):
        accepted_data(one.digest, other, "run")


def test_augmented_samples_are_not_compared() -> None:
    def data() -> Dataset:
        return dataset(read=lambda at: torch.rand(len(at), 3, 4, 4))

    assert "samples" not in data().digest
    assert accepted_data(data().digest, data(), "run") == []


def test_a_run_refuses_to_go_on_with_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    random = np.random.default_rng(0)
    for number in range(16):
        file = tmp_path / "set" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(file)
    data = {"name": "images", "path": str(tmp_path / "set"), "resolution": 8, "mode": "L"}
    folder = tmp_path / "run"
    trainers.train(teacher_recipe(data=data, images=8, evaluation={"every": 0}), folder)
    saved = json.loads((folder / "checkpoints" / f"{8:012d}" / "state.json").read_text())["data"]
    assert (saved["count"], saved["classes"], saved["class_names"]) == (16, 2, ["a", "b"])
    trainers.resume(folder, images=16)
    (tmp_path / "set" / "a").rename(tmp_path / "set" / "c")  # classes a and b change places
    with pytest.raises(UserError, match=r"is not what 'tiny' was trained on: other pixels; .* --allow data accepts it"):
        trainers.resume(folder, images=24)
    trainers.resume(folder, images=24, allow=["data"])
    trainers.resume(folder, images=32)  # the next checkpoint holds the accepted data
