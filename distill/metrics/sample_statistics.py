"""Statistics of sets of samples that need no features: moments, spectrum, diversity, energy distance."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from distill.errors import require

NYQUIST = 0.5  # cycles per element, the highest frequency along one dimension
_TINY = 1e-8  # the least standard deviation that is divided by, and contrast whose logarithm is taken
_LEAST_POWER = 1e-6


class Spectrum(NamedTuple):
    """The mean power of samples in octaves of spatial frequency.

    Attributes:
        power: The power per element [bands], from the highest octave to the lowest. The mean of a sample, which is the
            frequency 0, is in none of them.
        low: The lower end of each band, as a fraction of the highest frequency along one dimension.
    """

    power: Tensor
    low: list[float]


def channel_moments(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means and the standard deviations [C] over all elements of each channel of [N, C, *spatial]."""
    values = samples.double().transpose(0, 1).flatten(1)
    return values.mean(1), values.std(1, correction=0)


def power_spectrum(samples: Tensor) -> Spectrum:
    """Return the power of samples [N, C, *spatial], averaged over samples and channels, by radial spatial frequency.

    The powers of all bands add up to the mean square of the samples around the mean of each one (Parseval). Samples
    without spatial dimensions, or of one element, have no band.
    """
    sizes = samples.shape[2:]
    dims = tuple(range(2, samples.ndim))
    if math.prod(sizes) == 1:
        return Spectrum(samples.new_zeros(0, dtype=torch.float64), [])
    transform = torch.fft.fftn(samples.double(), dim=dims, norm="forward")
    power = transform.abs().square().mean((0, 1))
    grids = torch.meshgrid(*(torch.fft.fftfreq(size, dtype=torch.float64) for size in sizes), indexing="ij")
    radius = torch.stack(grids).square().sum(0).sqrt().to(power.device)
    bands = max(1, int(math.log2(max(sizes) * NYQUIST)) + 1)
    # Octaves below the highest frequency of one dimension. The corners above it belong to the highest octave.
    octave = (NYQUIST / radius).log2().clamp(0, bands - 1).floor().long()
    sums = power.new_zeros(bands).index_add(0, octave.flatten()[1:], power.flatten()[1:])  # without the frequency 0
    return Spectrum(sums, [0.5 ** (band + 1) for band in range(bands)])


def diversity(samples: Tensor, groups: Tensor | None = None) -> float:
    """Return the mean Euclidean distance between two samples of one condition, in the mean over conditions.

    Args:
        samples: Samples [N, C, *spatial].
        groups: The number of the condition of each sample [N]. None for one condition. A condition with one sample does
            not count.

    Raises:
        UserError: No condition has two samples.
    """
    return _mean_over_groups(lambda x: _mean_distance(x, x), groups, samples)


def energy_distance(a: Tensor, b: Tensor, groups: Tensor | None = None) -> float:
    """Return the energy distance between two sets of samples, in the mean over conditions.

    It is 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely and Rizzo 2013, doi:10.1016/j.jspi.2013.03.018), which is 0 for
    equal laws and positive otherwise. The estimate is unbiased, and may therefore be slightly below 0. Row i of `a` and
    row i of `b` may be made from the same noise, since they are not compared with each other.

    Args:
        a: Samples [N, C, *spatial].
        b: As many samples under the same conditions.
        groups: The number of the condition of each sample [N]. None for one condition. A condition with one sample does
            not count.

    Raises:
        UserError: No condition has two samples.
    """

    def statistic(x: Tensor, y: Tensor) -> Tensor:
        return 2 * _mean_distance(x, y) - _mean_distance(x, x) - _mean_distance(y, y)

    return _mean_over_groups(statistic, groups, a, b)


def _mean_over_groups(statistic: Callable[..., Tensor], groups: Tensor | None, *sets: Tensor) -> float:
    """Return the mean of a statistic of sets of rows [n, D] over the conditions that have two samples."""
    rows = [one.double().flatten(1) for one in sets]
    groups = torch.zeros(len(rows[0])) if groups is None else groups
    numbers, counts = groups.unique(return_counts=True)
    chosen = [groups == number for number in numbers[counts > 1]]
    require(bool(chosen), f"samples: {len(groups)} given, expected two of one condition")
    return float(torch.stack([statistic(*(one[mask] for one in rows)) for mask in chosen]).mean())


def _mean_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean Euclidean distance between row i of a [n, D] and row j of b [n, D], over i != j."""
    # Without the expansion of the square, whose rounding errors are as large as small distances.
    distances = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    return (distances.sum() - distances.trace()) / (len(a) * (len(a) - 1))


def compare_samples(samples: Tensor, teacher: Tensor, groups: Tensor | None = None) -> dict[str, float]:
    """Compare a student's samples with its teacher's, by statistics that need no features.

    Args:
        samples: The student's samples [N, C, *spatial].
        teacher: The teacher's samples [N, C, *spatial] under the same conditions.
        groups: The number of the condition of each sample [N]. None for one condition.

    Returns:
        `distance`, the energy distance over the mean distance of two samples of the teacher; `diversity`, the mean
        distance of two samples over that of the teacher; `contrast`, the standard deviation over the teacher's; `mean`,
        the difference of the means over the teacher's standard deviation; `spectrum`, the natural logarithm of the
        power over the teacher's. The last three are of the channel or band that is farthest off. `contrast/0`, `mean/0`
        and so on are those of each channel, where there are several, and `spectrum/LOW-HIGH` those of each band.

    Raises:
        UserError: No condition has two samples.
    """
    scale = diversity(teacher, groups)
    found = {
        "distance": energy_distance(samples, teacher, groups) / scale,
        "diversity": diversity(samples, groups) / scale,
    }
    (mean, std), (teacher_mean, teacher_std) = channel_moments(samples), channel_moments(teacher)
    unit = teacher_std.clamp(min=_TINY)  # a channel of the teacher may be constant
    power, low = power_spectrum(samples)
    teacher_power, _ = power_spectrum(teacher)
    # A band in which the teacher has nothing counts as one with this share of its power.
    floor = teacher_power.sum() * _LEAST_POWER
    bands = [f"{one:g}-{2 * one:g}" for one in low]
    for name, values, parts in (
        ("contrast", (std / unit).clamp(min=_TINY).log(), range(len(std))),
        ("mean", (mean - teacher_mean) / unit, range(len(std))),
        ("spectrum", ((power + floor) / (teacher_power + floor)).log(), bands),
    ):
        logged = values.exp() if name == "contrast" else values
        if len(values):
            found[name] = float(logged[values.abs().argmax()])
        if len(values) > 1:
            found |= {f"{name}/{part}": float(value) for part, value in zip(parts, logged, strict=True)}
    return found
