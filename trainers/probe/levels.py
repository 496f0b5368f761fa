"""The teacher's denoising error by noise level, beside the best possible, and the cost of bfloat16."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from distill.denoiser import Denoiser
from distill.random import Random
from trainers.probe.subject import Reference, Subject, slices

LEVELS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 80.0)
"""The noise-to-signal ratios at which the error is measured."""
MIDDLE = 0.4
"""The error at the median of the times, over that in pure noise. docs/probe.md has the runs in which it was found."""
BEST_OF = 2**23
"""The most values of images among which the best possible estimate is looked for."""


class Level(NamedTuple):
    """The teacher at one noise level. Errors are mean squares over samples and elements, in units of x.

    Attributes:
        nsr: The noise-to-signal ratio.
        error: The error of the teacher's estimate of x0.
        floor: A value below the best possible error: that of the estimate over the data, the sample itself included.
            None without data.
        ceiling: A value above the best possible error: that of the same estimate without the sample. None without data.
        bfloat16: The mean square of what bfloat16 changes in the estimate, over the error.
    """

    nsr: float
    error: float
    floor: float | None
    ceiling: float | None
    bfloat16: float


@torch.no_grad()
def error_by_level(subject: Subject, reference: Reference) -> list[Level]:
    """Return the teacher's error at each of LEVELS, on reference samples with the same noise at every level."""
    teacher, x = subject.teacher, reference.samples
    noise = (
        Random.at(subject.run.seed, torch.arange(len(x), device=x.device)).stream("probe levels").normal(*x.shape[1:])
    )
    known, found = _known(subject, reference), []
    for nsr in subject.levels(LEVELS):
        total, changed, bounds = 0.0, 0.0, torch.zeros(2)
        for part in slices(len(x)):
            t, cond = subject.time(nsr, len(x[part])), reference.cond.rows(part)
            x_t = teacher.path.diffuse(x[part], t, noise[part])
            estimate = teacher(x_t, t, cond)
            total += float((estimate - x[part]).square().sum())
            with in_bfloat16(teacher):
                changed += float((teacher(x_t, t, cond) - estimate).square().sum())
            if known is not None:
                bounds += _best_possible(x[part] + nsr * noise[part], nsr, part.start, cond.labels, known).cpu()
        floor, ceiling = (None, None) if known is None else (bounds / x.numel()).tolist()
        found.append(Level(nsr, total / x.numel(), floor, ceiling, changed / max(total, 1e-30)))
    return found


class Known(NamedTuple):
    """Images [M, ...] of the data, and their labels [M] if they have any."""

    images: Tensor
    labels: Tensor | None


def _known(subject: Subject, reference: Reference) -> Known | None:
    """Return images of the data, the reference samples first and in their order. None without images."""
    if not reference.are_data:
        return None
    data, x = subject.dataset, reference.samples
    count = min(data.count, max(len(x), BEST_OF // x[0].numel()))
    positions = data.order(subject.run.seed, torch.arange(count))
    labels = None if data.labels is None else data.labels[positions].to(x.device)
    return Known(data.images(positions).to(x.device), labels)


def _best_possible(noisy: Tensor, nsr: float, first: int, labels: Tensor | None, known: Known) -> Tensor:
    """Return the sums of squared errors of the posterior mean over the data, with and without the sample itself, [2].

    Where the data are the whole truth, the posterior mean is the best estimate of all. On samples of a law it is too
    good by the sample itself, and without that sample too bad by its absence.

    Args:
        noisy: Samples x + nsr noise [B, ...].
        nsr: The noise-to-signal ratio.
        first: The number of the first sample in `known`.
        labels: The labels [B], if the teacher knows them.
        known: The data.
    """
    rows, points = noisy.flatten(1), known.images.flatten(1)
    distances = rows.square().sum(1)[:, None] - 2 * rows @ points.T + points.square().sum(1)
    score = -distances / (2 * nsr**2)
    if labels is not None and known.labels is not None:
        score = score.masked_fill(labels[:, None] != known.labels, -math.inf)
    own = torch.arange(len(rows), device=rows.device)
    truth = points[first : first + len(rows)]
    without = score.clone()
    without[own, first + own] = -math.inf
    # A class of one sample has none beside it. The weights are then NaN, and the estimate is 0, which no sample is.
    estimates = [one.softmax(1).nan_to_num() @ points for one in (score, without)]
    return torch.stack([(estimate - truth).square().sum() for estimate in estimates])


def spread(subject: Subject, reference: Reference, levels: Sequence[Level]) -> float:
    """Return the mean square that remains of x when nothing but its condition is known, for each element.

    It is the variance within the classes, or over all samples without classes. For prompts, of which each has one
    sample, it is the teacher's largest error.
    """
    x, labels = reference.samples, reference.cond.labels
    if subject.teacher.network.text_encoder is not None:
        return max(level.error for level in levels)
    if labels is None:
        return float(x.var(0).mean())
    groups = [group for label in labels.unique() if len(group := x[labels == label]) > 1]
    if not groups:
        return float(x.var(0).mean())
    total = sum(float(group.var(0).sum()) * len(group) for group in groups)
    return total / sum(group.numel() for group in groups)


def middle_share(scale: float) -> float:
    """Return the error at the median of the times, over that in pure noise, for a teacher guided at `scale`.

    It is MIDDLE without guidance, and rises until the scale 2. Lower shares there give too little diversity, and higher
    ones too much. No larger scale was tried.
    """
    return 1 - (1 - MIDDLE) / min(max(scale, 1.0), 2.0) ** 4


def middle_level(levels: Sequence[Level], whole: float, share: float = MIDDLE) -> float | None:
    """Return the noise-to-signal ratio at which the teacher's error is `share` of `whole`, or None if there is none.

    Between two levels the error is taken as linear in the logarithm of the ratio.
    """
    for below, above in pairwise(levels):
        if below.error <= share * whole < above.error:
            part = (share * whole - below.error) / (above.error - below.error)
            return float(below.nsr * (above.nsr / below.nsr) ** part)
    return None


@contextmanager
def in_bfloat16(denoiser: Denoiser) -> Iterator[None]:
    """Let a denoiser compute in bfloat16 while the context is open."""
    denoiser.autocast_dtype = torch.bfloat16
    try:
        yield
    finally:
        denoiser.autocast_dtype = None
