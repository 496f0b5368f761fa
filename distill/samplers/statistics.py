"""The empirical model statistics of a teacher, by which DPM-Solver-v3 walks (Zheng et al., arXiv:2310.13268).

In the coordinate y = x_t / alpha with lambda = log(alpha / sigma) as its time, the probability flow ODE of every path
is dy/dlambda = -e with e = y - x0(y). The paper splits e into l y and f = e - l y. It chooses l so that f depends on y
as little as it can, and s and b so that they predict its change along a trajectory, df/dlambda = s f + b. All three are
numbers for each element of a sample, and functions of lambda.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as FilePath

import torch
from torch import Tensor

from distill.conditions import Condition, ConditionLike
from distill.denoiser import GuidableDenoiser
from distill.errors import UserError, one_line, require
from distill.paths import DiscreteVP, Path, beside
from distill.public_text import printable
from distill.random import Random
from distill.samplers.levels import Levels, apart, log_levels
from distill.saved_files import open_tensors, save_tensors
from distill.weights import FLOATS, is_finite

STATISTICS_FORMAT = "distill model statistics 1"
"""The value of the key `format` in the header of a file."""
LARGEST_S = 3.0
"""The largest size of s, a choice of ours: where f is almost constant, s is the ratio of two errors."""
FAINT_VARIANCE = 1e-4
"""The variance of f, in units of the smaller of those of the data and of e, below which s fades to 0. Ours too."""
TENSORS = ("log_snr", "l", "s", "b")
LARGEST_LOG_SNR = 100.0
"""The largest size of a level. Beyond it there is nothing but noise or nothing but data, in whatever precision."""
MOST_LEVELS, MOST_NUMBERS = 2**12, 2**29
"""The most levels in a file, and numbers of a tensor: 120 levels of 3 x 1024 x 1024 pixels are fewer."""


@dataclass(frozen=True, eq=False)
class ModelStatistics:
    """The statistics l, s, b of a teacher at N levels.

    Attributes:
        path: The teacher's path, as text.
        log_snr: The levels log(alpha / sigma), float64 [N], rising.
        l: The linear coefficient at each level, [N, ...] with the shape of a sample. 1 - l is the mean of the diagonal
            of the Jacobian of x0 in y.
        s: The slope of the change of f in f itself, [N, ...].
        b: The part of that change without f, [N, ...].
        teacher: The hash of the teacher. Empty where it is not known.
    """

    path: str
    log_snr: Tensor
    l: Tensor  # noqa: E741 (the paper's name)
    s: Tensor
    b: Tensor
    teacher: str = ""

    @classmethod
    def constant(
        cls, path: Path, shape: tuple[int, ...], linear: float, slope: float = 0.0, offset: float = 0.0
    ) -> ModelStatistics:
        """Return statistics that are the same at every level and element (arXiv:2310.13268).

        The values (l, s, b) = (1, 0, 0) make DPM-Solver++, and (0, -1, 0) DPM-Solver. Of order 1, both are DDIM.

        Args:
            path: The path.
            shape: The shape of a sample.
            linear: The value of l.
            slope: The value of s.
            offset: The value of b.
        """
        levels = torch.tensor([-14.0, 14.0], dtype=torch.float64)
        l, s, b = (torch.full((2, *shape), value, dtype=torch.float64) for value in (linear, slope, offset))  # noqa: E741
        return cls(str(path), levels, l, s, b)

    def check(self, path: Path) -> None:
        """Raise UserError if the statistics are those of a teacher on another path."""
        if self.path != str(path):
            raise UserError(
                f"sampler.statistics: are of a teacher with path {printable(self.path, 80)}, this one's is {path!s:.80}"
            )

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise UserError if the statistics are of samples with another shape."""
        theirs = tuple(self.l.shape[1:])
        if theirs != shape:
            raise UserError(f"sampler.statistics: are of samples with shape {theirs}, these have {shape}")

    def save(self, file: FilePath) -> None:
        """Write a safetensors file.

        Raises:
            UserError: It cannot be written.
        """
        from safetensors import SafetensorError

        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in TENSORS}
        try:
            save_tensors(tensors, file, {"format": STATISTICS_FORMAT, "path": self.path, "teacher": self.teacher})
        except (OSError, SafetensorError) as error:
            raise UserError(f"statistics: cannot write '{file}': {one_line(error)}") from error

    @classmethod
    def load(cls, file: FilePath) -> ModelStatistics:
        """Return the statistics in a file of `save`, of which nothing is run.

        Raises:
            UserError: The file cannot be read, or holds no such statistics.
        """
        from safetensors import SafetensorError

        try:
            with open_tensors(file) as opened:
                facts = dict(opened.metadata() or {})
                names = set(opened.keys())
                for name in names:
                    numbers = math.prod(opened.get_slice(name).get_shape())
                    most = MOST_LEVELS if name == "log_snr" else MOST_NUMBERS
                    more = f"sampler.statistics: '{file}' has {numbers:,} numbers in {name!r:.40}, more than {most:,}"
                    require(numbers <= most, more)
                tensors = {name: opened.get_tensor(name).clone() for name in names & set(TENSORS)}  # not mapped
        except (OSError, SafetensorError) as error:
            raise UserError(f"sampler.statistics: cannot read '{file}': {one_line(error)}") from error
        if facts.get("format") != STATISTICS_FORMAT or names != set(TENSORS) or "path" not in facts:
            raise UserError(f"sampler.statistics: '{file}' holds no statistics of a model; `distill sample` makes some")
        if not _sound(**tensors):
            raise UserError(
                f"sampler.statistics: '{file}' is damaged: its tensors are no finite l, s, b at rising levels from"
                f" -{LARGEST_LOG_SNR:g} to {LARGEST_LOG_SNR:g}"
            )
        return cls(facts["path"], **tensors, teacher=facts.get("teacher", ""))


def measure_statistics(
    denoiser: GuidableDenoiser,
    z: Tensor,
    cond: ConditionLike = None,
    points: int = 120,
    low: float = 0.002,
    high: float = 80.0,
    batch: int = 16,
    say: Callable[[int], None] | None = None,
) -> ModelStatistics:
    """Measure the statistics of a teacher on its own trajectories (arXiv:2310.13268).

    Each sample walks from noise by DPM-Solver++ (2M) over all points. At each, Hutchinson's estimator gives the
    diagonal of the Jacobian by one product with a vector. The change of x0 is its difference along the trajectory,
    where the paper takes the product of the Jacobian with the trajectory's direction. This one also works on a grid of
    steps. The cost is one forward and one backward pass for each sample and point.

    Args:
        denoiser: The teacher, guided or not.
        z: Unit normal noise [B, ...], the starts. The paper takes 1,024 of them and more.
        cond: The condition [B, ...].
        points: The number of levels, at equal distances in log(alpha / sigma). A grid of steps limits it.
        low: The smallest noise-to-signal ratio.
        high: The largest one. The path limits both.
        batch: The number of samples that walk at once. Their whole trajectories are held in memory.
        say: Called with the number of samples that are done, after each batch.

    Raises:
        UserError: There are fewer than 3 levels or 2 samples, or the teacher's estimates are not finite.
    """
    path = denoiser.path
    count = min(points, len(path.alphas_cumprod)) if isinstance(path, DiscreteVP) else points
    require(count >= 3, f"points: must be at least 3, got {count}")
    require(len(z) >= 2, f"samples: must be at least 2, got {len(z)}")
    levels = Levels.at(path, apart(path, log_levels(path, count, low, high)))
    log_snr = -levels.nsr[:-1].log()
    sums = torch.zeros((), dtype=torch.float64, device=z.device)
    given = Condition.of(cond)
    for first in range(0, len(z), batch):
        rows = slice(first, first + batch)
        y, e, diagonal = _trajectories(denoiser, levels, z[rows], given.rows(rows))
        # de/dlambda = -e - dx0/dlambda. The differences of x0 alone are small where y is large.
        (drift,) = torch.gradient(y - e, spacing=(log_snr.to(e),), dim=0, edge_order=2)
        change = -e - drift
        parts = (diagonal, y, e, change, y * y, y * e, e * e, y * change, e * change)
        sums = sums + torch.stack([part.double().sum(1) for part in parts])
        if say is not None:
            say(min(first + batch, len(z)))
    if not bool(sums.isfinite().all()):
        raise UserError("statistics: the teacher's estimates are not finite at some level")
    linear, slope, offset = _solve(sums / len(z), log_snr.to(z.device), torch.finfo(z.dtype).eps)
    return ModelStatistics(str(path), log_snr, linear.float().cpu(), slope.float().cpu(), offset.float().cpu())


def _trajectories(
    denoiser: GuidableDenoiser, levels: Levels, z: Tensor, cond: Condition
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, e = y - x0, and an estimate of the diagonal of dx0/dy along trajectories, each [N, B, ...]."""
    path = levels.path
    # A sample keeps its vector at all levels, so that the error of l is a smooth function of the level.
    signs = Random.of(z).stream("probe").normal(*z.shape[1:], dtype=z.dtype).sign()
    ratios = levels.nsr.tolist()
    y, before = ratios[0] * z, None
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for index, here in enumerate(ratios[:-1]):
        t = levels.time(index, z)
        with torch.enable_grad():
            inner = y.detach().requires_grad_()
            x0 = denoiser(beside(y, path.alpha(t))[0] * inner, t, cond)
            (product,) = torch.autograd.grad(x0, inner, signs.to(x0.dtype))
        x0 = x0.detach().to(z.dtype)
        found.append((y, y - x0, signs * product))
        there = ratios[index + 1]
        if there == 0:
            break
        estimate = x0
        if before is not None:  # the value in the middle of the step, by the line through the last two estimates
            last = ratios[index - 1]
            estimate = (
                x0 + (x0 - before) * float(torch.tensor(here / there).log() / torch.tensor(last / here).log()) / 2
            )
        y, before = there / here * y + (1 - there / here) * estimate, x0
    y, e, diagonal = (torch.stack(column) for column in zip(*found, strict=True))
    return y, e, diagonal


def _solve(means: Tensor, log_snr: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return l, s, b [N, ...] of the means [9, N, ...] of: the diagonal, y, e, e', yy, ye, ee, ye', ee'.

    With f = e - l y and dy/dlambda = -e, its change is f' = e' + l e - l' y. s and b are the regression of f' on f.
    """
    diagonal, y, e, change, yy, ye, ee, y_change, e_change = means
    linear = 1 - diagonal
    (bend,) = torch.gradient(linear, spacing=(log_snr,), dim=0, edge_order=2)
    yy, ye, ee = yy - y * y, ye - y * e, ee - e * e
    y_change, e_change = y_change - y * change, e_change - e * change
    spread = ee - 2 * linear * ye + linear**2 * yy  # the variance of f
    together = (e_change + linear * ee - bend * ye) - linear * (y_change + linear * ye - bend * yy)
    # Where f hardly varies, beside the data and beside e, its slope is the ratio of two errors, and moves few samples.
    floor = (
        FAINT_VARIANCE * torch.minimum(ee, yy[-1:]) + (30 * eps) ** 2 * (yy + y * y) + torch.finfo(torch.float64).tiny
    )
    slope = (together / (spread.clamp(min=0) + floor)).clamp(-LARGEST_S, LARGEST_S)
    return linear, slope, (change + linear * e - bend * y) - slope * (e - linear * y)


def _sound(log_snr: Tensor, l: Tensor, s: Tensor, b: Tensor) -> bool:  # noqa: E741
    """Return whether tensors of a file are statistics: finite numbers of one shape at rising levels within reason."""
    values = (log_snr, l, s, b)
    if log_snr.ndim != 1 or len(log_snr) < 2 or not all(value.dtype in FLOATS for value in values):
        return False
    if l.ndim < 1 or len(l) != len(log_snr) or not l.shape == s.shape == b.shape or log_snr.dtype != torch.float64:
        return False
    rising = bool((log_snr.diff() > 0).all()) and float(log_snr.abs().max()) <= LARGEST_LOG_SNR
    return rising and all(map(is_finite, values))
