"""DPM-Solver-v3: multi-step exponential integration by the empirical statistics of the teacher (arXiv:2310.13268)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Literal

import torch
from torch import Tensor

from distill.annotations import LocalPath
from distill.conditions import ConditionLike
from distill.denoiser import GuidableDenoiser
from distill.errors import UserError
from distill.paths import Path
from distill.random import Random
from distill.samplers.levels import PURE_NOISE, estimate_x0, pure_noise
from distill.samplers.sampler import Sampler
from distill.samplers.statistics import ModelStatistics
from distill.weights import is_finite

PANEL = 0.5
"""The largest length in lambda over which an integral is taken by one rule of 4 points."""
JUMP = 1e-6
"""The distance in lambda from the noisiest level of statistics to noisier ones, at which they are not used."""
GAUSS_NODES = (-0.8611363115940526, -0.3399810435848563, 0.3399810435848563, 0.8611363115940526)
GAUSS_WEIGHTS = (0.34785484513745385, 0.6521451548625461, 0.6521451548625461, 0.34785484513745385)
MISSING = (
    "sampler.statistics: dpm_v3 needs the statistics of the teacher; `distill sample TEACHER --sampler dpm_v3` computes"
    " them and says their file (in Python: distill.samplers.measure_statistics)"
)


@dataclass(frozen=True, kw_only=True)
class DPMV3(Sampler):
    """DPM-Solver-v3, a predictor with a corrector (Zheng et al., arXiv:2310.13268).

    The last evaluation steps from the last level to 0. The authors' code stops at that level, and has one interval more.
    The corrector has one node more than the predictor, as in UniPC. Theirs has as many, or one more by a pseudo-order.
    For CIFAR-10 they take order 3, `log_snr` as the spacing, and a corrector up to 6 evaluations.

    Attributes:
        statistics: The file of the teacher's statistics, of `ModelStatistics.save`.
        order: The order of the predictor.
        corrector: Whether each estimate but the last also corrects the step that led to it, at no further evaluation. It raises the
            order by one.
    """

    statistics: LocalPath | None = None
    order: Literal[1, 2, 3] = 2
    corrector: bool = True

    def check(self, path: Path) -> None:
        super().check(path)
        self.read().check(path)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        self.read().check_shape(shape)

    def read(self) -> ModelStatistics:
        """Return the statistics.

        Raises:
            UserError: No file is named, or it holds no statistics.
        """
        if self.statistics is None:
            raise UserError(MISSING)
        return ModelStatistics.load(FilePath(self.statistics))

    def solve(self, denoiser: GuidableDenoiser, z: Tensor, cond: ConditionLike, random: Random | None) -> Tensor:
        samples = self.walk(self.read(), denoiser, z, cond)
        if not is_finite(samples):
            raise UserError(f"sampler.statistics: by '{self.statistics}' the samples are not finite")
        return samples

    @torch.no_grad()
    def walk(
        self, statistics: ModelStatistics, denoiser: GuidableDenoiser, z: Tensor, cond: ConditionLike = None
    ) -> Tensor:
        """Draw samples by statistics in memory, in place of those of the file.

        Args:
            statistics: The statistics.
            denoiser: The denoiser, guided or not.
            z: Unit normal noise [B, ...], the start.
            cond: The condition [B, ...], or None for an unconditional denoiser.

        Returns:
            Samples [B, ...] without a graph.

        Raises:
            UserError: The statistics are of another path or shape.
        """
        statistics.check(denoiser.path)
        statistics.check_shape(tuple(z.shape[1:]))
        levels = self.distinct_levels(denoiser.path)
        nsr = levels.nsr[:-1].clamp(max=PURE_NOISE)
        steps = _Steps(statistics, -nsr.log(), z.device)
        last, x, start = len(levels.times) - 1, pure_noise(levels, z), z
        known: list[Tensor] = []  # f at the levels so far
        for index in range(last):
            x0 = estimate_x0(denoiser, levels, index, x, cond)
            known.append(steps.remainder(index, x, x0))
            if self.corrector and index:
                x = steps.take(index - 1, start, known, [index, *_back(index - 1, self.order)])
            start, x = x, steps.take(index, x, known, _back(index, self.order))
        return estimate_x0(denoiser, levels, last, x, cond)


class _Steps:
    """The coefficients of the steps between levels, in the coordinate x = y / sqrt(1 + nsr^2).

    Args:
        statistics: The statistics.
        lambdas: The levels, float64 [N], rising.
        device: The device of the samples.
    """

    def __init__(self, statistics: ModelStatistics, lambdas: Tensor, device: torch.device) -> None:
        self.lambdas = lambdas.to(device)
        self.curves = _Curves(statistics, self.lambdas)
        self.linear = self.curves.linear(self.lambdas)
        # The scale y / x at each level, [N].
        self.log_scale = 0.5 * torch.log1p((-2 * self.lambdas).exp())

    def remainder(self, index: int, x: Tensor, x0: Tensor) -> Tensor:
        """Return f = (1 - l) y - x0 [B, ...] at a level."""
        scale = (1 - self.linear[index]) * self.log_scale[index].exp()
        return scale.to(x.dtype) * x - x0

    def take(self, index: int, x: Tensor, known: list[Tensor], nodes: list[int]) -> Tensor:
        """Return the samples [B, ...] at the level after `index`.

        The exact solution is y_t = A (y_s - integral of E (g + B)), where f = exp(S) (g + B) along the trajectory. g is
        replaced by the polynomial through its values at `nodes` (arXiv:2310.13268).

        Args:
            index: The number of the level.
            x: The samples [B, ...] there.
            known: f at the levels so far.
            nodes: The numbers of the levels whose f is used. The first, or the second in a corrector, is `index`.
        """
        here, there = self.lambdas[index], self.lambdas[index + 1]
        curves, count = self.curves, len(nodes)
        points, weights = curves.panels(here, there)
        sums = curves.sums(torch.cat([here[None], there[None], self.lambdas[nodes], points]))
        grown, slope, offset = (one - one[:1] for one in sums)  # integrals from `here`: of l, of s, of exp(-S) b
        # In units of `here`: exp(-(S - S_here)) inside the third integral.
        offset = offset * sums[1][:1].exp()
        weight = _column(weights, grown) * (grown + slope)[2 + count :].exp()
        far = _column(points - here, grown)
        moments = torch.stack([(weight * far**power).sum(0) for power in range(count)])  # of (lambda - here)^k
        powers = (self.lambdas[nodes] - here)[:, None] ** torch.arange(count, device=here.device)
        # The coefficients of the polynomial are powers^-1 times its values. Hence the weight of g at each node:
        mixed = torch.tensordot(torch.linalg.inv(powers), moments, dims=([0], [0]))
        y_factor = (self.log_scale[index] - self.log_scale[index + 1] - grown[1]).exp()
        f_factor = (-self.log_scale[index + 1] - grown[1]).exp()
        constant = (weight * offset[2 + count :]).sum(0)
        following: Tensor = y_factor.to(x.dtype) * x
        for place, node in enumerate(nodes):
            # g at a node is exp(-(S - S_here)) f - B there.
            constant = constant - mixed[place] * offset[2 + place]
            factor = f_factor * mixed[place] * (-slope[2 + place]).exp()
            following = following - factor.to(x.dtype) * known[node]
        following = following - (f_factor * constant).to(x.dtype)
        return following


class _Curves:
    """The statistics as lines between their levels, and their integrals.

    Before the noisiest level they are those of DPM-Solver++, and after the cleanest one they stay as they are. Their
    integrals are exact but for that of b, where the authors take sums over trapezoids between levels.
    """

    def __init__(self, statistics: ModelStatistics, lambdas: Tensor) -> None:
        knots = statistics.log_snr.to(lambdas)
        values = torch.stack([one.to(lambdas) for one in (statistics.l, statistics.s, statistics.b)])
        plain = torch.zeros_like(values[:, :1])
        plain[0] = 1
        ends = torch.stack([torch.minimum(lambdas[0], knots[0]) - 1, torch.maximum(lambdas[-1], knots[-1]) + 1])
        # The statistics jump before the noisiest level. A level of a schedule that is this one but for the rounding of
        # its time to float32 has its statistics.
        jump = knots[:1] - JUMP
        self.knots = torch.cat([ends[:1], jump, jump, knots, ends[1:]])
        self.values = torch.cat([plain, plain, values[:, :1], values, values[:, -1:]], 1)
        pieces = [max(1, math.ceil(width / PANEL)) for width in self.knots.diff().tolist()]
        left = torch.repeat_interleave(torch.arange(len(pieces)), torch.tensor(pieces)).to(lambdas.device)
        share = torch.cat([torch.arange(count).to(lambdas) / count for count in pieces])
        finer = self.knots[left] + share * (self.knots[left + 1] - self.knots[left])
        self.values = torch.cat([self._line(left, share), self.values[:, -1:]], 1)
        self.knots = torch.cat([finer, self.knots[-1:]])
        # The integrals up to each knot, [3, N, ...]. The third needs the second.
        self.areas = torch.zeros_like(self.values)
        every, whole = torch.arange(len(self.knots) - 1, device=lambdas.device), torch.ones_like(self.knots[1:])
        self.areas[:2, 1:] = self._areas(every, whole).cumsum(1)
        self.areas[2, 1:] = self._shrunk(every, whole).cumsum(0)

    def linear(self, points: Tensor) -> Tensor:
        """Return l [P, ...] at points [P]."""
        return self._line(*self._place(points))[0]

    def sums(self, points: Tensor) -> Tensor:
        """Return the integrals [3, P, ...] up to points [P]: of l, of s, and of exp(-integral of s) b."""
        left, share = self._place(points)
        rest = torch.cat([self._areas(left, share), self._shrunk(left, share)[None]])
        return self.areas[:, left] + rest

    def panels(self, here: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Return the points [P] and the weights [P] of a rule of integration from `here` to `there`."""
        inside = self.knots[(self.knots > here) & (self.knots < there)]
        edges = torch.cat([here[None], inside, there[None]])
        half = edges.diff()[:, None] / 2
        nodes, weights = torch.tensor(GAUSS_NODES).to(edges), torch.tensor(GAUSS_WEIGHTS).to(edges)
        return (edges[:-1, None] + half * (1 + nodes)).flatten(), (half * weights).flatten()

    def _place(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cell [P] of each of the points [P], and the share [P] of the cell that lies before it."""
        left = (torch.searchsorted(self.knots, points, right=True) - 1).clamp(0, len(self.knots) - 2)
        return left, (points - self.knots[left]) / (self.knots[left + 1] - self.knots[left])

    def _line(self, left: Tensor, share: Tensor) -> Tensor:
        """Return l, s, b [3, P, ...] at shares [P] of cells [P]."""
        start = self.values[:, left]
        return start + _column(share, start[0]) * (self.values[:, left + 1] - start)

    def _areas(self, left: Tensor, share: Tensor) -> Tensor:
        """Return the integrals [2, P, ...] of l and s over shares [P] of cells [P]."""
        start = self.values[:2, left]
        middle = start + _column(share / 2, start[0]) * (self.values[:2, left + 1] - start)
        return _column((self.knots[left + 1] - self.knots[left]) * share, start[0]) * middle

    def _shrunk(self, left: Tensor, share: Tensor) -> Tensor:
        """Return the integrals [P, ...] of exp(-integral of s) b over shares [P] of cells [P]."""
        length = (self.knots[left + 1] - self.knots[left]) * share
        total = torch.zeros_like(self.values[2, left])
        for node, weight in zip(GAUSS_NODES, GAUSS_WEIGHTS, strict=True):
            part = share * (1 + node) / 2
            slopes = self.areas[1, left] + self._areas(left, part)[1]
            total += _column(length * weight / 2, total) * (-slopes).exp() * self._line(left, part)[2]
        return total


def _column(values: Tensor, like: Tensor) -> Tensor:
    """Return `values` [P] as [P, 1, ...], with as many dimensions as `like` [P, ...]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _back(index: int, order: int) -> list[int]:
    """Return the numbers of up to `order` levels, from `index` back."""
    return list(range(index, max(-1, index - order), -1))
