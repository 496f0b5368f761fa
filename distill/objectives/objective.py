"""The contract of an objective, and the denoising loss of the fake that all objectives share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distill.conditions import Condition
from distill.denoiser import Denoise, Denoiser, GuidableDenoiser
from distill.loss_weights import Weight, denoising_weight
from distill.paths import Path
from distill.random import Random
from distill.times import LogNormal, Times


def batch_mean(values: Tensor) -> Tensor:
    """Return the mean over samples, [B, ...] to [...]."""
    return values.mean(0)


def ignore_note(name: str, values: Tensor, nsr: Tensor | None = None) -> None:
    """Drop a note."""


@dataclass(frozen=True)
class Denoisers:
    """The networks that an objective sees, and the services of the trainer.

    Attributes:
        path: The path on which teacher and fake estimate x0.
        teacher: The frozen teacher.
        fake: The fake denoiser. While it trains, `fake` is its module behind the wrapper that communicates: call it
            and ask nothing else. Where the objective builds a Critic around the fake, the call takes `want` as well.
        frozen: The further frozen networks, by the names that `load_frozen` and `further_teachers` give them.
        memory: The tensors of `new_memory`.
        images: The number of samples that the generator has trained on.
        mean: (values [B, ...]) -> the mean [...] over the samples of all processes, without a graph. It is for what
            couples samples.
        note: (name, values [B], nsr [B] or None) -> None logs a diagnostic, by bins of the noise-to-signal ratio `nsr`
            where it is given.
    """

    path: Path
    teacher: GuidableDenoiser
    fake: Callable[..., Any]
    frozen: Mapping[str, nn.Module] = field(default_factory=dict)
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    images: int = 0
    mean: Callable[[Tensor], Tensor] = batch_mean
    note: Callable[..., None] = ignore_note


@dataclass(frozen=True)
class Pairs:
    """Ends of the teacher's probability flow.

    Attributes:
        noise: Unit normal noise [P, C, *spatial].
        target: The sample [P, C, *spatial] that the multi-step teacher makes of `noise` under `cond`.
        cond: The condition [P, ...].
        made: The sample [P, C, *spatial] that the generator makes of `noise` now, carrying its graph.
    """

    noise: Tensor
    target: Tensor
    cond: Condition = field(default_factory=Condition)
    made: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """The data of one micro-batch.

    Attributes:
        noise: The generator's unit normal input [B, C, *spatial].
        random: The random numbers of each sample. The noise of a diffusion is drawn from them and never from `noise`.
        cond: The condition [B, ...].
        real: Real samples [B, C, *spatial], images in [-1, 1], where the objective needs them.
        pairs: ODE pairs, where the objective needs them.
    """

    noise: Tensor
    random: Random
    cond: Condition = field(default_factory=Condition)
    real: Tensor | None = None
    pairs: Pairs | None = None


class Estimates(NamedTuple):
    """The estimates of x0 [B, ...] of teacher and fake at one diffusion `x_t` of x, at the time `t` [B].

    `logits` [B, ...] are the critic's at x_t, where they were asked for.
    """

    teacher: Tensor
    fake: Tensor
    t: Tensor
    x_t: Tensor
    logits: Tensor | None = None


def per_sample(x: Tensor) -> Tensor:
    """Return the sum over a sample's elements, [B, ...] to [B]: the unit of every published loss coefficient here."""
    return x.flatten(1).sum(1)


def l1_normaliser(x: Tensor, teacher: Tensor, floor: float = 1e-5) -> Tensor:
    """Return 1 / max(mean |x - teacher|, floor) [B], without a graph.

    SiD (arXiv:2404.04057) and DMD (arXiv:2311.18828, eq. 8) weight each sample with it.
    """
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
    """Return weight(t) |D(x_t) - x0|^2 [B], summed over elements, for x0 [B, ...] diffused at times of a law."""
    x_t, t, _ = path.draw(x0, times, random)
    w = denoising_weight(weight, path.nsr(t), sigma_data)
    return w.to(x0.dtype) * per_sample((denoise(x_t, t, cond) - x0) ** 2)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One method: its fields are its hyper-parameters, its losses are named terms [B], weighted and un-reduced.

    The trainer averages each term over the global batch. An objective sees denoisers, the sample x and the batch,
    never the generator, an optimizer or a rank. It opens no file.
    """

    fake_times: Times = LogNormal(-1.2, 1.2)
    fake_weight: Weight = "edm"

    @property
    def needs(self) -> frozenset[str]:
        """The fields of Batch beyond noise and condition without which it cannot train: real, pairs."""
        return frozenset()

    @property
    def differentiates_denoisers(self) -> bool:
        """Whether the generator's gradient passes through teacher and fake into x."""
        return False

    @property
    def trains_fake(self) -> bool:
        """Whether there is a fake at all."""
        return True

    @property
    def uses_samples(self) -> bool:
        """Whether the generator's loss looks at x; else x is empty, [0, ...], and ODE pairs are all it trains on."""
        return True

    def check(self, teacher: Denoiser) -> None:
        """Raise UserError, naming the field, when the objective means nothing with this teacher or on its path."""
        for one in fields(self):
            if isinstance(law := getattr(self, one.name), Times):
                law.check(teacher.path)

    def build_fake(self, fake: Denoiser) -> nn.Module:
        """Return the network that the fake's player trains, around a copy of the teacher: a Critic where it judges."""
        return fake

    def further_teachers(self) -> dict[str, str]:
        """Return the folders of further frozen teachers, by the name under which `nets.frozen` holds each."""
        return {}

    def check_further_teacher(self, name: str, other: Denoiser, teacher: Denoiser) -> None:
        """Raise UserError when the further teacher `name` does not go with the teacher."""

    def load_frozen(self) -> dict[str, nn.Module]:
        """Return further frozen networks, by the name under which `nets.frozen` holds each."""
        return {}

    def new_memory(self) -> dict[str, Tensor]:
        """Return small tensors that it keeps between updates, at their start; changed in place, equal on all ranks."""
        return {}

    def trains_generator(self, images: int) -> bool:
        """Return whether the generator moves in the round after `images` images; else the fake alone does."""
        return True

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the terms [B] whose gradient in `x` moves the generator.

        `x` [B, ...] carries the generator's graph. A term of `batch.pairs` is [P].
        """
        raise NotImplementedError

    def fake_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the terms [B] that train the fake to denoise the generator's samples `x` [B, ...] (no graph)."""
        times, weight, random = self.fake_times, self.fake_weight, batch.random.stream("fake")
        sigma_data = nets.teacher.sigma_data
        loss = denoising_loss(nets.fake, nets.path, x.detach(), batch.cond, times, weight, random, sigma_data)
        return {"denoising": loss}

    def estimate(self, nets: Denoisers, x: Tensor, batch: Batch, times: Times, logits: bool = False) -> Estimates:
        """Diffuse x once and return the estimates of x0 by teacher and fake.

        They carry a graph into x where `differentiates_denoisers` says so. With `logits` the critic judges x_t in the
        fake's pass. Notes the gap and both denoising errors.
        """
        with torch.set_grad_enabled(self.differentiates_denoisers and torch.is_grad_enabled()):
            x_t, t, _ = nets.path.draw(x, times, batch.random.stream("generator"))
            teacher = nets.teacher(x_t, t, batch.cond)
            fake, judged = nets.fake(x_t, t, batch.cond, "both") if logits else (nets.fake(x_t, t, batch.cond), None)
        with torch.no_grad():
            nsr = nets.path.nsr(t)
            for name, difference in (("gap", teacher - fake), ("fake_error", fake - x), ("teacher_error", teacher - x)):
                size = difference.abs() if name == "gap" else difference**2
                nets.note(name, size.flatten(1).mean(1), nsr)
        return Estimates(teacher, fake, t, x_t, judged)
