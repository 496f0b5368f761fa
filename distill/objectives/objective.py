"""The contract of an objective, and the denoising loss of the fake denoiser that all of them share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from distill.denoiser import Condition, Denoise, Denoiser
from distill.paths import Path
from distill.random import Random
from distill.times import LogNormal, Times
from distill.weights import Weight, denoising_weight


@dataclass(frozen=True)
class Denoisers:
    """What an objective may see: the frozen `teacher` and the `fake`, both estimates of x0 on `path`.

    While the fake trains, `fake` is its Denoiser behind the wrapper that communicates: call it, and ask nothing else.
    """

    path: Path
    teacher: Denoiser
    fake: Denoise


@dataclass(frozen=True)
class Batch:
    """The inputs of one micro-batch; every tensor starts with [B].

    `noise` [B, C, H, W] is the generator's unit normal input, `random` the sample's own random numbers (never to be
    mixed up: diffusion noise must be independent of `noise`), `cond` the condition, `real` images [B, C, H, W] in
    [-1, 1] where the objective needs them.
    """

    noise: Tensor
    random: Random
    cond: Condition = None
    real: Tensor | None = None


def per_sample(x: Tensor) -> Tensor:
    """Sum over a sample's elements, [B, ...] to [B]: the unit of every published loss coefficient here."""
    return x.flatten(1).sum(1)


def l1_normaliser(x: Tensor, teacher: Tensor, floor: float = 1e-5) -> Tensor:
    """1 / max(mean |x - teacher|, floor) [B], without graph (SiD, arXiv:2404.04057; DMD, arXiv:2311.18828, eq. 8)."""
    return 1 / (x - teacher).detach().abs().flatten(1).mean(1).clamp(min=floor)


def denoising_loss(
    denoise: Denoise,
    path: Path,
    x0: Tensor,
    cond: Condition,
    times: Times,
    weight: Weight,
    random: Random,
    sigma_data: float = 0.5,
) -> Tensor:
    """weight(t) |D(x_t) - x0|^2 [B], summed over elements, for x0 [B, ...] diffused at times of the law `times`."""
    x_t, t, _ = path.draw(x0, times, random)
    w = denoising_weight(weight, path.nsr(t), sigma_data)
    return w.to(x0.dtype) * per_sample((denoise(x_t, t, cond) - x0) ** 2)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One method: its fields are its hyper-parameters, its losses are named terms [B], weighted and un-reduced.

    The trainer averages each term over the global batch. An objective sees denoisers, the sample x and the batch,
    never the generator, an optimizer or a rank.
    """

    fake_times: Times = LogNormal(-1.2, 1.2)
    fake_weight: Weight = "edm"

    needs: ClassVar[frozenset[str]] = frozenset()
    """Fields of Batch beyond noise and condition without which it cannot train: real."""
    through_scores: ClassVar[bool] = False
    """Whether the generator's gradient passes through teacher and fake into x."""

    def check(self, path: Path) -> None:
        """Raise UserError, naming the field, when the objective means nothing on `path`."""
        for field in fields(self):
            if isinstance(law := getattr(self, field.name), Times):
                law.check(path)

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Terms [B] whose gradient in `x` [B, ...], carrying the generator's graph, moves the generator."""
        raise NotImplementedError

    def fake_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Terms [B] that train the fake to denoise the generator's samples `x` [B, ...] (no graph)."""
        times, weight, random = self.fake_times, self.fake_weight, batch.random.stream("fake")
        sigma_data = nets.teacher.sigma_data
        loss = denoising_loss(nets.fake, nets.path, x.detach(), batch.cond, times, weight, random, sigma_data)
        return {"denoising": loss}

    def scores(self, nets: Denoisers, x: Tensor, batch: Batch, times: Times) -> tuple[Tensor, Tensor, Tensor]:
        """(teacher, fake, t): both estimates of x0 [B, ...] at one diffusion of x, with or without graph into x."""
        with torch.set_grad_enabled(self.through_scores and torch.is_grad_enabled()):
            x_t, t, _ = nets.path.draw(x, times, batch.random.stream("generator"))
            return nets.teacher(x_t, t, batch.cond), nets.fake(x_t, t, batch.cond), t
