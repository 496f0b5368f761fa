"""DMD's two terms in one unit, and what it asks for."""

from __future__ import annotations

import pytest
import torch

from distill import EDM, UserError
from distill.objectives.dmd import DMD, dmd_loss
from distill.perceptual import L1
from tests.distill.objectives.test_contract import make
from tests.toys import gradients


def test_the_terms_are_the_papers_times_the_number_of_elements() -> None:
    objective = DMD(regression=0.5, perceptual=L1())
    case = make(objective, EDM())
    terms = objective.generator_loss(case.nets, case.x, case.batch)
    s = objective.estimate(case.nets, case.x, case.batch, objective.times)
    assert torch.allclose(terms["dmd"], dmd_loss(case.x, s.teacher, s.fake))
    pairs = case.batch.pairs
    assert pairs is not None and pairs.made is not None
    assert torch.allclose(terms["regression"], 18 * 0.5 * (pairs.made - pairs.target).abs().mean((1, 2, 3)))


def test_without_regression_it_needs_no_pairs() -> None:
    assert (DMD().needs, DMD(regression=0.0).needs) == ({"pairs"}, set())
    objective = DMD(regression=0.0)
    case = make(objective, EDM())
    assert set(objective.generator_loss(case.nets, case.x, case.batch)) == {"dmd"} and not case.nets.frozen
    with pytest.raises(UserError, match=r"^regression: must be at least 0, got -0.1$"):
        DMD(regression=-0.1)


def test_matching_alone_is_what_regression_leaves() -> None:
    """The regression reaches the pairs' samples and nothing else."""
    with_pairs, without = (make(DMD(regression=weight), EDM()) for weight in (0.25, 0.0))
    ours, alone = (
        gradients(lambda x, c=case: c.objective.generator_loss(c.nets, x, c.batch)["dmd"].sum(), case.x)
        for case in (with_pairs, without)
    )
    assert torch.equal(ours[0], alone[0])
