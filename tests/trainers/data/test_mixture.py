"""Mixtures in exact shares, and mirrored pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from distill.errors import UserError
from tests.tiny import experiment, fit_run, teacher_recipe
from trainers.data import Data, Dataset, Digits, Images, Mixture, Prompts, sources
from trainers.data.batches import Batches, BatchSizes, condition_at, positions_at
from trainers.recipe.strict_yaml import dump

THIRD = 1 / 3


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


class Given(Data):
    """A source of a data set that is given."""

    def __init__(self, dataset: Dataset) -> None:
        object.__setattr__(self, "dataset", dataset)

    def load(self) -> Dataset:
        return self.dataset  # type: ignore[attr-defined,no-any-return]


def numbered(count: int, start: float = 0.0, name: str = "numbers", **more: Any) -> Given:
    def read(at: Tensor) -> Tensor:
        assert len(at), "nothing is asked of a source that has no part in a batch"
        return (at + start)[:, None, None].float()

    return Given(Dataset(name, count, (1, 1), None, read, **more))


def mixed(share: float | None, *sizes: int) -> Dataset:
    first, *others = [numbered(size, 1_000.0 * part) for part, size in enumerate(sizes)]
    mixture = Mixture(first, others[0] if len(others) == 1 else Mixture(others[0], others[1], 0.5), share)
    return mixture.load()


@pytest.mark.parametrize("share", [0.5, 0.75, THIRD, 0.001, 0.999999])
def test_shares_are_exact_in_every_stretch(share: float) -> None:
    data = mixed(share, 7, 11)
    is_first = data.order(0, torch.arange(30_000)) < 7
    for start, length in ((0, 10), (0, 30_000), (17, 1_000), (29_000, 999)):
        assert abs(int(is_first[start : start + length].sum()) - share * length) <= 1
    late = data.order(3, torch.arange(10**12, 10**12 + 1_000))  # no rounding at the end of a long run
    assert abs(int((late < 7).sum()) - 1_000 * share) <= 1 and int(late.min()) >= 0 and int(late.max()) < 18


def test_each_source_has_epochs_of_its_own() -> None:
    data = mixed(0.75, 30, 10)
    positions = data.order(5, torch.arange(120))
    first, second = positions[positions < 30], positions[positions >= 30]
    assert all(torch.equal(epoch.sort().values, torch.arange(30)) for epoch in first.split(30))
    assert all(torch.equal(epoch.sort().values, torch.arange(30, 40)) for epoch in second.split(10))
    assert not torch.equal(first[:30], first[30:60]) and not torch.equal(second[:10], second[10:20])
    parts = [data.order(5, torch.arange(start, min(start + 7, 120))) for start in range(0, 120, 7)]
    assert torch.equal(torch.cat(parts), positions)  # whatever the batches


def test_three_sources_and_their_samples() -> None:
    data = mixed(0.5, 4, 5, 6)
    assert data.count == 15
    assert data.images(torch.tensor([0, 3, 4, 8, 9, 14])).flatten().tolist() == [0, 3, 1000, 1004, 2000, 2005]
    positions = data.order(0, torch.arange(4_000))
    assert torch.bucketize(positions, torch.tensor([3, 8])).bincount().tolist() == [2_000, 1_000, 1_000]


def test_without_a_share_a_mixture_is_all_samples_together() -> None:
    positions = mixed(None, 12, 4).order(1, torch.arange(160))
    assert positions.bincount().tolist() == [10] * 16


def test_conditions_are_drawn_in_the_shares() -> None:
    data = mixed(0.9, 3, 7)
    uniform = (torch.arange(100_000) + 0.5).double() / 100_000
    counts = positions_at(data, uniform).bincount(minlength=10)
    assert counts.tolist() == pytest.approx([30_000] * 3 + [10_000 / 7] * 7, abs=2)


def test_labels_and_prompts_of_a_mixture() -> None:
    data = Mixture(Digits(), Digits(), 0.25).load()
    assert data.labels is not None and (data.count, data.classes, data.shape) == (2 * 1797, 10, (1, 8, 8))
    digits = Digits().load()
    assert digits.labels is not None
    at = torch.tensor([5, 1797 + 5])
    assert torch.equal(data.images(at), digits.images(torch.tensor([5, 5])))
    assert data.labels[at].tolist() == [int(digits.labels[5])] * 2
    Path("a.txt").write_text("one\ntwo\n")
    Path("b.txt").write_text("three\n")
    prompts = Mixture(Prompts("a.txt"), Prompts("b.txt"), 0.5).load().prompts
    assert prompts is not None and list(prompts) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (numbered(3), "has samples of shape (1, 8, 8), numbers (1, 1)"),
        (Given(Dataset("bare", 3, (1, 8, 8), torch.arange(3), None)), "has images True, bare False"),
        (Given(Dataset("free", 3, (1, 8, 8), None, torch.zeros)), "has labels True, free False"),
        (
            Given(Dataset("words", 2, (1, 8, 8), torch.arange(2), torch.zeros, class_names=("a", "b"))),
            "has classes named None, words ('a', 'b')",
        ),
    ],
)
def test_sources_of_two_kinds_are_refused(other: Data, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        Mixture(Digits(), other).load()
    assert str(caught.value) == f"data: a mixture is of one kind: digits {reason}"


def test_a_mixture_in_a_recipe_trains_and_resumes(tmp_path: Path) -> None:
    part = {"name": "images", "path": pictures("set"), "resolution": 8, "mode": "L", "label_column": None}
    data = {"name": "mixture", "first": part, "second": {**part, "flip": True}, "share": 0.25}
    settings = teacher_recipe(data=data, images=24)
    run = experiment(settings)
    assert experiment({**settings, "data": dump(run)["data"]}).data == run.data
    fit_run(settings, tmp_path / "run")
    session = fit_run({**settings, "images": 48}, tmp_path / "run", resume=True)
    whole = fit_run({**settings, "images": 48}, tmp_path / "whole")
    weights = session.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in whole.model.state_dict().items())
    with pytest.raises(UserError, match=r"share: must be from 0\.000001 to 0\.999999, got 1"):
        experiment({**settings, "data": {**data, "share": 1}})


def pictures(name: str, count: int = 6) -> str:
    Path(name).mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (count, 8, 8), dtype=np.uint8)):
        Image.fromarray(pixels).save(f"{name}/{number}.png")
    return name


@pytest.mark.parametrize("memory", [0, 2**30])
def test_mirrored_pictures_come_behind_the_others(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_DECODED_BYTES", memory)
    settings: Any = {"path": pictures("set"), "resolution": 8, "mode": "L", "label_column": None}
    plain, both = Images(**settings).load(), Images(**settings, flip=True).load()
    assert (plain.count, both.count) == (6, 12)
    images = plain.images(torch.arange(6))
    assert torch.equal(
        both.images(torch.tensor([0, 6, 5, 11])),
        torch.stack([images[0], images[0].flip(-1), images[5], images[5].flip(-1)]),
    )
    assert both.pixels_hash() != plain.pixels_hash()


def test_labels_and_prompts_of_mirrored_pictures() -> None:
    pictures("set")
    for number in range(6):
        Path(f"set/{number}.txt").write_text(f"words {number}")
        Path("set", str(number % 2)).mkdir(exist_ok=True)
    data = Images("set", resolution=8, label_column=None, prompt_column="text", flip=True).load()
    assert data.prompts is not None and [data.prompts[at] for at in (1, 7)] == ["words 1", "words 1"]
    for number in range(6):
        Path(f"set/{number}.png").rename(f"set/{number % 2}/{number}.png")
    labelled = Images("set", resolution=8, flip=True).load()
    assert condition_at(labelled, torch.tensor([0, 5, 6, 11])).labels.tolist() == [0, 1, 0, 1]  # type: ignore[union-attr]


def test_workers_share_what_is_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mixture of pictures in memory and of others on demand: each of the former is decoded once, by any worker."""
    log = tmp_path / "log"
    pixels_of = Images._pixels

    def note(self: Images, *arguments: Any) -> Tensor:
        with log.open("a") as stream:
            stream.write("x")
        return pixels_of(self, *arguments)

    monkeypatch.setattr(Images, "_pixels", note)
    kept = Images(pictures("kept"), resolution=8, mode="L", label_column=None).load()
    data = Mixture(Given(kept), numbered_like(kept), 0.5).load()
    batches = Batches(data, BatchSizes(24), 0, torch.float32, True, 0, 1, torch.device("cpu"), workers=1)
    alone = Batches(data, BatchSizes(24), 0, torch.float32, True, 0, 1, torch.device("cpu"))
    for first in range(0, 240, 24):
        real = batches.micro("teacher", first, 0).real
        assert len(log.read_text()) == 6
        assert real is not None and torch.equal(real, alone.micro("teacher", first, 0).real)  # type: ignore[arg-type]
    assert len(log.read_text()) == 6  # also for this process
    batches.close()


def numbered_like(dataset: Dataset) -> Given:
    """Samples of the same shape, which are decoded on demand."""
    return Given(
        Dataset(
            "demand",
            5,
            dataset.shape,
            None,
            lambda at: at[:, None, None, None].float().expand(-1, 1, 8, 8),
            on_demand=True,
        )
    )
