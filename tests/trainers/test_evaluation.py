"""The protocol of a data set, whatever its size and order."""

from __future__ import annotations

import pytest
import torch

from trainers import evaluation
from trainers.data import Dataset, Digits
from trainers.evaluation import fit_protocol
from trainers.recipe.run import Evaluation


def test_the_digits_have_the_floor_that_the_docs_name() -> None:
    protocol = fit_protocol(Digits().load(), Evaluation())
    assert protocol.name == "pca48(digits, 1797 real)"
    assert protocol.halves == pytest.approx(0.27811, abs=1e-4)


def test_a_large_data_set_that_is_sorted_by_class_is_judged_on_all_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = Digits().load()
    assert digits.labels is not None
    order = digits.labels.argsort(stable=True)
    folder = Dataset("sorted", digits.count, digits.shape, digits.labels[order], lambda p: digits.images(order[p]))
    monkeypatch.setattr(evaluation, "FIT_LIMIT", 600)
    protocol = fit_protocol(folder, Evaluation(components=32))
    assert protocol.real.count == 600
    images = digits.images(torch.arange(digits.count))
    assert protocol.agreement(images, digits.labels) > 0.95  # the first 600 hold classes 0 to 3 alone
