"""The published Inception weights against the published statistics of CIFAR-10, where a machine has both.

DISTILL_INCEPTION names the weights, DISTILL_CIFAR10_REFERENCE EDM's file cifar10-32x32.npz, and DISTILL_CIFAR10 the
50,000 training pictures, as a folder or a table.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distill.metrics import frechet_distance
from distill.metrics.inception import Inception
from trainers.evaluation.references import compute_reference, read_reference
from trainers.recipe.words import open_given

NAMES = ("DISTILL_INCEPTION", "DISTILL_CIFAR10_REFERENCE", "DISTILL_CIFAR10")


@pytest.mark.slow
@pytest.mark.skipif(not all(name in os.environ for name in NAMES), reason="published weights and statistics are needed")
def test_the_statistics_of_cifar10_are_the_published_ones(tmp_path: Path) -> None:
    """The distance of the training set to itself, by another program. A resize or a rounding of its own gives 0.1."""
    weights, reference, pictures = (os.environ[name] for name in NAMES)
    ours = compute_reference(open_given(pictures, 32), Inception(weights), str(tmp_path))
    published = read_reference(Path(reference), "fid")
    assert ours.protocol == published.protocol and ours.reference.count == 50_000
    assert frechet_distance(ours.reference.moments, published.reference.moments) < 0.01
