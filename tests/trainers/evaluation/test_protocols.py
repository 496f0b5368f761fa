"""The protocol of a data set, whatever its size and order."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from distill.errors import UserError
from distill.metrics import Protocol, extractor
from tests.tiny import build_session, experiment, teacher_recipe
from trainers.data import Dataset, Digits
from trainers.evaluation import check_evaluation, fit_protocol, protocols
from trainers.hooks import Evaluate
from trainers.recipe.measures import Evaluation
from trainers.runs.open import Objects, open_run


def test_the_digits_have_the_floor_that_the_docs_name() -> None:
    protocol = fit_protocol(Digits().load(), Evaluation())
    assert protocol.name == "pca48(digits, 1797 real)"
    assert protocol.halves == pytest.approx(0.27811, abs=1e-4)


def test_a_large_data_set_that_is_sorted_by_class_is_judged_on_all_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = Digits().load()
    assert digits.labels is not None
    order = digits.labels.argsort(stable=True)
    folder = Dataset("sorted", digits.count, digits.shape, digits.labels[order], lambda p: digits.images(order[p]))
    monkeypatch.setattr(protocols, "FIT_LIMIT", 600)
    protocol = fit_protocol(folder, Evaluation(components=32))
    assert protocol.real.count == 600
    images = digits.images(torch.arange(digits.count))
    assert protocol.agreement(images, digits.labels) > 0.95  # the first 600 hold classes 0 to 3 alone


def numbered(count: int, different: int | None = None, labels: torch.Tensor | None = None) -> Dataset:
    """Noise of 8x8 pixels, of which `different` images are not the same."""
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    if different is not None:
        images = images[torch.arange(count) % different]
    return Dataset("few", count, (1, 8, 8), labels, lambda at: images[at])


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (numbered(3), "evaluation: few has 3 images, it needs 4; set evaluation.every to 0, or take more data"),
        (numbered(40), "evaluation.components: 48 given, expected 1 to 39, the directions that the 40 real images"),
        (numbered(900, 30), "evaluation.components: 48 given, expected 1 to 29, the directions that the 900 real"),
        (numbered(60, 1), "evaluation.components: 48 given, expected 1 to 0, the directions that the 60 real images"),
        (numbered(60, None, torch.zeros(60, dtype=torch.int64)), "evaluation: labels: 1 class given, expected at"),
    ],
)
def test_what_an_evaluation_lacks_is_known_before_training(dataset: Dataset, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_evaluation(dataset, Evaluation())
    assert str(caught.value).startswith(message)
    with pytest.raises(UserError):
        fit_protocol(dataset, Evaluation())


def test_agreement_needs_labels() -> None:
    """Without labels it is not measured, and decides about no weights."""
    assert fit_protocol(numbered(60), Evaluation(components=8)).metrics == {"frechet"}
    with pytest.raises(UserError, match=r"^evaluation.best: label_agreement needs labels, data: few has none$"):
        check_evaluation(numbered(60), Evaluation(components=8, best="label_agreement"))


def test_only_what_all_ranks_see_skips_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of one rank ends the run: the others wait for its samples."""

    def failing(*arguments: Any) -> NoReturn:
        raise UserError("column 'prompt' is not finite")

    session = build_session(teacher_recipe(evaluation={"every": 8, "samples": 64}))
    hook = Evaluate(tmp_path, session.run.evaluation)
    monkeypatch.setattr(Protocol, "report", failing)
    hook(session)  # a line on stderr, and the training goes on
    monkeypatch.setattr("trainers.evaluation.measure.draw_samples", failing)
    with pytest.raises(UserError, match="column 'prompt' is not finite"):
        hook(session)


def test_an_evaluation_is_checked_when_a_run_opens() -> None:
    recipe, few = experiment(teacher_recipe(evaluation={"every": 8}, images=16)), Objects(data=numbered(40))
    with pytest.raises(UserError, match=r"^evaluation.components: 48 given, expected 1 to 39"):
        open_run(recipe, 1, objects=few)
    for accepted in ({"every": 0}, {"every": 17}, {"every": 8, "components": 39}):
        open_run(experiment(teacher_recipe(evaluation=accepted, images=16)), 1, objects=few)


def test_a_folder_sorted_by_class_fits_a_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """The support vector machine sees the first images alone, which were those of one class."""
    digits = Digits().load()
    assert digits.labels is not None
    order = digits.labels.argsort(stable=True)
    folder = Dataset("sorted", digits.count, digits.shape, digits.labels[order], lambda p: digits.images(order[p]))
    for module in (protocols, extractor):
        monkeypatch.setattr(module, "MOST_FITTED", 170)
    protocol = fit_protocol(folder, Evaluation(components=32))
    assert protocol.extractor.labels is not None and protocol.extractor.labels.tolist() == list(range(10))
