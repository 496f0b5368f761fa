"""The contract of an objective, and the denoising loss of the fake denoiser that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from distill.denoiser import Condition, Denoise, Denoiser
from distill.loss_weights import Weight, denoising_weight
from distill.paths import Path
from distill.random import Random
from distill.times import LogNormal, Times


@dataclass(frozen=True)
class Denoisers:
    """What an objective may see: the frozen `teacher` and the `fake`, both estimates of x0 on `path`.

    While the fake trains, `fake` is its module behind the wrapper that communicates: call it, and ask nothing else.
    Where the objective builds a `Critic` around the fake, the call takes `want` as well. `frozen` holds the networks
    that the objective's `load_frozen` named, `memory` the tensors that its `new_memory` did.
    """

    path: Path
    teacher: Denoiser
    fake: Callable[..., Any]
    frozen: Mapping[str, nn.Module] = field(default_factory=dict)
    memory: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Pairs:
    """Ends of the teacher's probability flow: `target` [P, C, H, W] is what the multi-step teacher makes of `noise`
    [P, C, H, W] under `cond`; `made` is what the generator makes of it now, carrying its graph."""

    noise: Tensor
    target: Tensor
    cond: Condition = None
    made: Tensor | None = None


def batch_mean(values: Tensor) -> Tensor:
    """The mean over samples, [B, ...] to [...]."""
    return values.mean(0)


def no_note(name: str, values: Tensor, nsr: Tensor | None = None) -> None:
    """Notes nothing."""


@dataclass(frozen=True)
class Batch:
    """The inputs of one micro-batch; every tensor starts with [B].

    `noise` [B, C, H, W] is the generator's unit normal input, `random` the sample's own random numbers (never to be
    mixed up: diffusion noise must be independent of `noise`), `cond` the condition, `real` images [B, C, H, W] in
    [-1, 1] and `pairs` where the objective needs them, `images` the samples the generator has trained on.

    `mean(values)` is the mean over the samples of all processes, [B, ...] to [...], without graph: for what couples
    samples. `note(name, values [B], nsr [B] or None)` logs a diagnostic, by bins of the noise-to-signal ratio if given.
    """

    noise: Tensor
    random: Random
    cond: Condition = None
    real: Tensor | None = None
    pairs: Pairs | None = None
    images: int = 0
    mean: Callable[[Tensor], Tensor] = batch_mean
    note: Callable[..., None] = no_note


class Estimates(NamedTuple):
    """Both estimates of x0 [B, ...] at one diffusion `x_t` of x, at `t` [B]; the critic's `logits` where asked for."""

    teacher: Tensor
    fake: Tensor
    t: Tensor
    x_t: Tensor
    logits: Tensor | None = None


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
    """Fields of Batch beyond noise and condition without which it cannot train: real, pairs."""
    differentiates_denoisers: ClassVar[bool] = False
    """Whether the generator's gradient passes through teacher and fake into x."""
    trains_fake: ClassVar[bool] = True
    """Whether there is a fake at all."""
    uses_samples: ClassVar[bool] = True
    """Whether the generator's loss looks at x; else x is empty, [0, ...], and ODE pairs are all it trains on."""

    def check(self, teacher: Denoiser) -> None:
        """Raise UserError, naming the field, when the objective means nothing with this teacher or on its path."""
        for one in fields(self):
            if isinstance(law := getattr(self, one.name), Times):
                law.check(teacher.path)

    def build_fake(self, fake: Denoiser) -> nn.Module:
        """The network that the fake's player trains, around a copy of the teacher: a Critic where there are logits."""
        return fake

    def load_frozen(self) -> dict[str, nn.Module]:
        """Frozen networks beyond the teacher, by the name under which `nets.frozen` holds them."""
        return {}

    def new_memory(self) -> dict[str, Tensor]:
        """Small tensors that it keeps between updates, at their start; changed in place, equal on all ranks."""
        return {}

    def trains_generator(self, images: int) -> bool:
        """Whether the generator moves in the round after `images` images; else the fake alone does."""
        return True

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Terms [B] whose gradient in `x` [B, ...], carrying the generator's graph, moves the generator; [P] where a
        term is of `batch.pairs`."""
        raise NotImplementedError

    def fake_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Terms [B] that train the fake to denoise the generator's samples `x` [B, ...] (no graph)."""
        times, weight, random = self.fake_times, self.fake_weight, batch.random.stream("fake")
        sigma_data = nets.teacher.sigma_data
        loss = denoising_loss(nets.fake, nets.path, x.detach(), batch.cond, times, weight, random, sigma_data)
        return {"denoising": loss}

    def estimate(self, nets: Denoisers, x: Tensor, batch: Batch, times: Times, logits: bool = False) -> Estimates:
        """Both estimates of x0 at one diffusion of x, with or without graph into x as `differentiates_denoisers` says.

        With `logits` the critic judges x_t in the fake's pass. Notes the gap and both denoising errors.
        """
        with torch.set_grad_enabled(self.differentiates_denoisers and torch.is_grad_enabled()):
            x_t, t, _ = nets.path.draw(x, times, batch.random.stream("generator"))
            teacher = nets.teacher(x_t, t, batch.cond)
            fake, judged = nets.fake(x_t, t, batch.cond, "both") if logits else (nets.fake(x_t, t, batch.cond), None)
        with torch.no_grad():
            nsr = nets.path.nsr(t)
            for name, difference in (("gap", teacher - fake), ("fake_error", fake - x), ("teacher_error", teacher - x)):
                size = difference.abs() if name == "gap" else difference**2
                batch.note(name, size.flatten(1).mean(1), nsr)
        return Estimates(teacher, fake, t, x_t, judged)
