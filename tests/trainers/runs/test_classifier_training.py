"""The training of a classifier: a function of its recipe, right on images that it never saw."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from distill.errors import UserError
from distill.metrics import Classifier
from trainers.data import DataFree, Dataset, Digits
from trainers.recipe.run import Optimizer
from trainers.recipe.strict_yaml import build, dump
from trainers.runs.classifier import ClassifierRun, split, train_classifier

DIGITS = Digits().load()
RUN = ClassifierRun(name="tiny", images=5_000, batch_size=64, width=16, optimizer=Optimizer(lr=2e-3, decay="cosine"))


def trained(run: ClassifierRun, dataset: Dataset = DIGITS) -> tuple[Classifier, list[tuple[int, float]]]:
    reports: list[tuple[int, float]] = []
    accelerator = Accelerator(cpu=True)
    return train_classifier(run, dataset, accelerator, lambda *report: reports.append(report)), reports


def test_it_learns_and_says_how_well_on_images_it_never_saw() -> None:
    read: list[Tensor] = []
    spied = replace(DIGITS, read=lambda at: (read.append(at), DIGITS.images(at))[1])
    classifier, reports = trained(RUN, spied)
    assert [images for images, _ in reports] == [1664, 3264, 4864, 5000]  # epochs of 1617 end within a batch of 64
    order = DIGITS.order(0, torch.arange(1797))
    held = order[:180]
    measured = {tuple(at.tolist()) for at in read if set(at.tolist()) & set(held.tolist())}
    assert measured == {tuple(held.tolist())}  # read as a whole, to measure; every batch is of other images
    assert torch.cat(read).unique().numel() == 1797
    assert DIGITS.labels is not None
    right = (classifier(DIGITS.images(held)).argmax(dim=1) == DIGITS.labels[held]).double().mean()
    assert classifier.accuracy == reports[-1][1] == float(right) > 0.93
    assert (classifier.data, classifier.shape, classifier.classes, classifier.width) == ("digits", (1, 8, 8), 10, 16)
    assert not classifier.training and not any(p.requires_grad for p in classifier.parameters())


def test_the_same_recipe_gives_the_same_bits() -> None:
    run = replace(RUN, images=400)
    first, _ = trained(run)
    torch.rand(7)
    assert trained(run)[0].hash == first.hash
    assert trained(replace(run, seed=1))[0].hash != first.hash


def test_the_parts_are_disjoint_and_all() -> None:
    train, held = split(replace(RUN, held_out=0.25), DIGITS)
    assert (train.count, held.count) == (1348, 449)
    assert train.labels is not None and held.labels is not None and DIGITS.labels is not None
    assert torch.equal((train.labels.bincount() + held.labels.bincount()), DIGITS.labels.bincount())
    order = DIGITS.order(0, torch.arange(1797))
    at = torch.tensor([5, 0, 1347])
    assert torch.equal(train.images(at), DIGITS.images(order[449:][at]))
    assert torch.equal(held.labels, DIGITS.labels[order[:449]])


def test_data_that_cannot_teach_it_is_refused() -> None:
    for dataset in (DataFree((1, 8, 8), 10).load(), replace(DIGITS, labels=None)):
        with pytest.raises(UserError, match=r"^data: a classifier is trained on labelled images, \w+ lacks images or"):
            trained(RUN, dataset)
    with pytest.raises(UserError, match=r"^held_out: 0.0001 of 1797 images leaves a part empty$"):
        trained(replace(RUN, held_out=1e-4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": 0}, "test: images: must be positive, got 0"),
        ({"width": -1}, "test: width: must be positive, got -1"),
        ({"held_out": 1}, "test: held_out: must be between 0 and 1, got 1"),
        ({"epochs": 3}, "test: unknown key 'epochs'; docs/recipes.md lists the keys"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(ClassifierRun, {"name": "a", "images": 10, **settings}, "test")
    assert str(caught.value).startswith(message)


def test_a_recipe_is_read_back() -> None:
    assert build(ClassifierRun, dump(RUN)) == RUN
