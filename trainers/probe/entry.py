"""The untrained one-step student, by the time at which it enters."""

from typing import NamedTuple, cast

import torch
from torch import Tensor

from distill.metrics.frechet import Moments, frechet_distance
from trainers.probe.subject import Reference, Subject, slices

ENTRIES = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 16.0, 40.0, 80.0)
"""The noise-to-signal ratios at which a student may enter."""
COMPONENTS = 48
"""The principal components in which distances are measured, at most a quarter of the samples."""
PICTURED = 10
"""The samples of a row of a picture."""


class Entry(NamedTuple):
    """The untrained student of one entry.

    Attributes:
        nsr: The noise-to-signal ratio of the entry.
        distance: The Frechet distance between its samples and the reference, in principal components of the reference.
        contrast: The standard deviation of its samples over that of the reference.
        samples: Some of its samples [N, C, *spatial], for the picture.
    """

    nsr: float
    distance: float
    contrast: float
    samples: Tensor


class Components:
    """The principal components of reference samples, in which samples of any shape are compared."""

    def __init__(self, reference: Tensor) -> None:
        rows = reference.flatten(1).double().cpu()
        self.mean, self.std = rows.mean(0), float(rows.std())
        basis = torch.linalg.svd(rows - self.mean, full_matrices=False)[2]
        self.basis = basis[: max(1, min(COMPONENTS, len(rows) // 4))].T
        self.moments = Moments.of(self.project(reference))

    def project(self, samples: Tensor) -> Tensor:
        """Return the components [N, D] of samples [N, ...], float64 on the CPU."""
        return cast(Tensor, (samples.flatten(1).double().cpu() - self.mean) @ self.basis)

    def distance(self, samples: Tensor) -> float:
        """Return the Frechet distance between samples [N, ...] and the reference."""
        return frechet_distance(Moments.of(self.project(samples)), self.moments)


@torch.no_grad()
def students_by_entry(subject: Subject, reference: Reference, components: Components) -> list[Entry]:
    """Return the untrained student of each of ENTRIES, on the same noise and on the conditions of the reference."""
    count = len(reference.samples)
    noise, _, _ = subject.inputs("entry", 0, count)
    found = []
    for nsr in subject.levels(ENTRIES):
        student = subject.generator(nsr)
        samples = torch.cat([student(noise[part], reference.cond.rows(part)) for part in slices(count)])
        contrast = float(samples.std()) / components.std
        found.append(Entry(nsr, components.distance(samples), contrast, samples[:PICTURED]))
    return found
