"""The augmentation of a run: what the fake sees, and nobody else, on any layout, and after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill import UserError
from distill.augmentation import Augmentation
from distill.conditions import Condition
from distill.objectives import Batch, Denoisers
from distill.objectives.sida import SiDA
from tests import families
from tests.tiny import build_session, once, opened, recipe
from tests.trainers.engine.test_data_parallel import assert_close
from tests.trainers.engine.worker import train
from tests.trainers.interrupted import assert_same, fit, interrupted
from trainers.engine.step import advance

ALWAYS = {"augmentation": {"probability": 1.0}}


@pytest.fixture(scope="session")
def teacher(shared: Path) -> Path:
    """EDM's network, which takes labels of the augmentation."""
    return once(shared, "teacher_edm_cond", families.TEACHERS["edm_cond"])


def settings_of(teacher: Path, work: Path, objective: Any = "sid", **changes: Any) -> dict[str, Any]:
    return families.recipe("edm_cond", objective, teacher, work, **{**ALWAYS, **changes})


class Seen(list[tuple[str, Tensor, Batch]]):
    """The samples and the batches of each call of an objective's losses."""

    def watch(self, monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
        for phase in ("fake", "generator"):
            loss = getattr(kind, f"{phase}_loss")

            def watched(
                objective: Any, nets: Denoisers, x: Tensor, batch: Batch, loss: Any = loss, phase: str = phase
            ) -> Any:
                self.append((phase, x.detach().clone(), batch))
                return loss(objective, nets, x, batch)

            monkeypatch.setattr(kind, f"{phase}_loss", watched)


def test_the_fake_sees_transformed_images_and_their_labels(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = {"name": "sida", "generator_from": 0}
    plain, seen = Seen(), Seen()
    for found, more in ((plain, {"augmentation": None}), (seen, {})):
        session = build_session(settings_of(teacher, tmp_path, objective, **more))
        with monkeypatch.context() as patch:
            found.watch(patch, SiDA)
            advance(session)
    (_, x, batch), (_, _, generator_batch) = seen
    (_, before, without), _ = plain
    augment, random = Augmentation(probability=1.0), batch.random.stream("augmentation")
    assert batch.real is not None and without.real is not None
    for ours, images, stream, cond in (
        (x, before, "generated", batch.cond),
        (batch.real, without.real, "real", batch.cond_of_real),
    ):
        wanted, labels = augment(images, random.stream(stream))
        assert torch.equal(ours, wanted) and torch.equal(cond["augment"], labels)
        assert (ours - images).abs().flatten(1).amax(1).min() > 0.01
    assert not torch.equal(batch.cond["augment"], batch.cond_of_real["augment"])
    assert "augment" not in generator_batch.cond and generator_batch.real_cond is None


def test_micro_batches_see_the_same(teacher: Path, tmp_path: Path) -> None:
    settings = settings_of(teacher, tmp_path, precision="float64")
    assert_close(train(settings, 3), train({**settings, "micro_batches": 2}, 3), 1e-9)


def test_a_resume_is_exact(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(teacher, tmp_path, images=24, samples_every=8)
    fit(settings, tmp_path / "whole")
    interrupted(settings, tmp_path / "cut", 12, monkeypatch)
    fit(settings, tmp_path / "cut", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_a_network_without_labels_is_refused(teachers: Path) -> None:
    with pytest.raises(UserError, match=r"^augmentation: the teacher's network takes no labels of it, as EDM's take; "):
        opened(recipe(teachers / "edm", **ALWAYS))


def test_a_null_condition_keeps_the_labels_of_a_batch() -> None:
    cond = Condition(labels=torch.tensor([3, 4]), augment=torch.ones(2, 9))
    null = Condition(labels=torch.tensor(10)).repeat_as(cond)
    assert null["labels"].tolist() == [10, 10] and torch.equal(null["augment"], cond["augment"])
