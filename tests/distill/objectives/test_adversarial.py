"""Schedules, couplings and costs of the objectives with a discriminator."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from distill import EDM
from distill.discriminator import deceive_loss
from distill.objectives import SiDA, l1_normaliser
from tests.distill.objectives.test_contract import make
from tests.toys import gradients


def test_sida_by_images() -> None:
    """The fake alone, then SiD alone at weight 1, then the mixture."""
    objective = SiDA()
    assert [objective.trains_generator(images) for images in (0, 99_999, 100_000)] == [False, False, True]
    case = make(objective, EDM())
    early, late = (
        objective.generator_loss(case.nets, case.x, replace(case.batch, images=images)) for images in (199_999, 200_000)
    )
    assert list(early) == ["sid"] and list(late) == ["sid", "adversarial"]
    assert torch.equal(late["sid"], early["sid"] / 2)


@pytest.mark.parametrize("reduction", ["all", "rank", "sample"])
def test_sida_reductions(reduction: str) -> None:
    """Against the authors' form, a cross-entropy of the batch under each sample's weight, for "all" and "rank"."""
    objective = SiDA(reduction=reduction, mix=1.0, adversarial=1.0)  # type: ignore[arg-type]
    case = make(objective, EDM())

    def ours(x: Tensor) -> Tensor:
        return objective.generator_loss(case.nets, x, case.batch)["adversarial"].sum()

    def published(x: Tensor) -> Tensor:
        s = objective.scores(case.nets, x, case.batch, objective.times, logits=True)
        assert s.logits is not None
        weight, entropy = 18 * l1_normaliser(x, s.teacher), deceive_loss(s.logits)
        return {
            "rank": (weight * entropy.mean()).sum(),
            "sample": (weight * entropy).sum(),
            "all": (18 * 0.7 * entropy).sum(),  # the mean over all ranks, as the case's batch gives it
        }[reduction]

    (mine,), (theirs,) = gradients(ours, case.x), gradients(published, case.x)
    assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-7)
