"""Multi-step samplers, by the schedulers of diffusers: each step uses the estimates of the steps before.

A scheduler is given our noise levels in place of its own. Its samples are x_t / sqrt(alpha^2 + sigma^2), which it takes
for those of a variance-preserving path. All its steps are functions of the logarithm of the noise-to-signal ratio, so
that they are the right ones for every path. The step to the ratio 0 returns the last estimate of x0, as theirs do.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from distill.conditions import ConditionLike
from distill.denoiser import GuidableDenoiser
from distill.errors import UserError, require
from distill.random import Random
from distill.samplers.levels import PURE_NOISE, Levels, estimate_x0, pure_noise
from distill.samplers.sampler import Sampler


@dataclass(frozen=True, kw_only=True)
class Multistep(Sampler):
    """A sampler that walks by one of diffusers' multi-step schedulers."""

    def scheduler(self, levels: Levels) -> Any:
        """Return the scheduler, whose networks predict the clean sample."""
        raise NotImplementedError

    def step(self, scheduler: Any, x0: Tensor, index: int, x: Tensor, noise: Tensor | None) -> Tensor:
        """Return the sample at the next level.

        Args:
            scheduler: The scheduler.
            x0: The estimate [B, ...] of the clean sample.
            index: The number of the level.
            x: The sample [B, ...].
            noise: Unit normal noise [B, ...]. None if the sampler adds none.
        """
        following: Tensor = scheduler.step(x0, scheduler.timesteps[index], x).prev_sample
        return following

    def solve(self, denoiser: GuidableDenoiser, z: Tensor, cond: ConditionLike, random: Random | None) -> Tensor:
        levels = self.distinct_levels(denoiser.path)
        scheduler, count = self.scheduler(levels), len(levels.times)
        scheduler.set_timesteps(min(count, 500))  # sets its memory of steps back; the levels are replaced
        scheduler.sigmas = levels.nsr.clamp(max=PURE_NOISE)
        scheduler.timesteps, scheduler.num_inference_steps = torch.arange(count), count
        scheduler.set_begin_index(0)
        x = pure_noise(levels, z)
        for index in range(count - 1):
            x0 = estimate_x0(denoiser, levels, index, x, cond)
            noise = None
            if random is not None and self.stochastic:
                noise = random.stream(f"step {index}").normal(*x.shape[1:], dtype=x.dtype)
            x = self.step(scheduler, x0, index, x, noise)
        return estimate_x0(denoiser, levels, count - 1, x, cond)


@dataclass(frozen=True, kw_only=True)
class DPM2M(Multistep):
    """DPM-Solver++ (2M), of order 2 (Lu et al., arXiv:2211.01095)."""

    def scheduler(self, levels: Levels) -> Any:
        return _dpm(2, "dpmsolver++")


@dataclass(frozen=True, kw_only=True)
class DPM3M(Multistep):
    """DPM-Solver++ (3M), of order 3 (Lu et al., arXiv:2211.01095).

    The published code, which diffusers follows, weights the second derivative by half of its coefficient. It is
    therefore of order 2, with a small constant.

    Attributes:
        as_published: Whether to take the published code's coefficient, and not that of order 3.
    """

    as_published: bool = False

    def scheduler(self, levels: Levels) -> Any:
        return _dpm(3, "dpmsolver++")

    def step(self, scheduler: Any, x0: Tensor, index: int, x: Tensor, noise: Tensor | None) -> Tensor:
        third = scheduler.lower_order_nums >= 2 and not (
            index == len(scheduler.timesteps) - 2 and len(scheduler.timesteps) < 15
        )
        following = super().step(scheduler, x0, index, x, noise)
        if self.as_published or not third:
            return following
        goal, *known = (-scheduler.sigmas[index - 2 : index + 2].log()).flip(0)
        h, m = goal - known[0], scheduler.model_outputs[::-1]
        r0, r1 = (known[0] - known[1]) / h, (known[1] - known[2]) / h
        curvature = ((m[0] - m[1]) / r0 - (m[1] - m[2]) / r1) / (r0 + r1)  # half of the second derivative
        lost = (torch.expm1(-h) + h) / h**2 - 0.5  # the other half of the weight of that derivative
        corrected: Tensor = following - scheduler.sigmas[index + 1].atan().cos() * lost * curvature
        return corrected


@dataclass(frozen=True, kw_only=True)
class DPMSDE(Multistep):
    """SDE-DPM-Solver++, which adds noise at every step (Lu et al., arXiv:2211.01095).

    Attributes:
        order: The order of its deterministic part.
    """

    order: Literal[1, 2, 3] = 2

    @property
    def stochastic(self) -> bool:
        """Whether it adds noise."""
        return True

    def scheduler(self, levels: Levels) -> Any:
        return _dpm(self.order, "sde-dpmsolver++")

    def step(self, scheduler: Any, x0: Tensor, index: int, x: Tensor, noise: Tensor | None) -> Tensor:
        following: Tensor = scheduler.step(x0, scheduler.timesteps[index], x, variance_noise=noise).prev_sample
        return following


@dataclass(frozen=True, kw_only=True)
class UniPC(Multistep):
    """UniPC, a predictor with a corrector that needs no further evaluation (Zhao et al., arXiv:2302.04867).

    Attributes:
        order: The order of the predictor. The corrector raises it by one.
    """

    order: Literal[1, 2, 3] = 2

    def scheduler(self, levels: Levels) -> Any:
        from diffusers import UniPCMultistepScheduler

        return UniPCMultistepScheduler(prediction_type="sample", solver_order=self.order)


@dataclass(frozen=True, kw_only=True)
class DEIS(Multistep):
    """DEIS in the logarithm of the ratio, on estimates of the noise (Zhang and Chen, arXiv:2204.13902).

    Attributes:
        order: The order of the polynomial through the estimates.
    """

    order: Literal[1, 2, 3] = 2

    def scheduler(self, levels: Levels) -> Any:
        from diffusers import DEISMultistepScheduler

        return DEISMultistepScheduler(prediction_type="sample", solver_order=self.order)


@dataclass(frozen=True, kw_only=True)
class SASolver(Multistep):
    """SA-Solver, a stochastic Adams method with a corrector (Xue et al., arXiv:2309.05019).

    Attributes:
        predictor_order: The order of its Adams-Bashforth steps.
        corrector_order: The order of its Adams-Moulton corrections. 0 for none.
        tau: The share of noise: 0 is the probability flow ODE, 1 the reverse SDE.
        tau_interval: The noise-to-signal ratios [low, high] at which noise is added (unverified: the range that the
            paper has for CIFAR-10 in EDM's coordinate).
    """

    predictor_order: Literal[1, 2, 3] = 2
    corrector_order: Literal[0, 1, 2, 3] = 2
    tau: float = 1.0
    tau_interval: tuple[float, float] = (0.05, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.tau >= 0, f"tau: must be at least 0, got {self.tau}")
        if not 0 <= self.tau_interval[0] < self.tau_interval[1]:
            raise UserError(f"tau_interval: must be two ratios, 0 <= low < high, got {list(self.tau_interval)}")

    @property
    def stochastic(self) -> bool:
        """Whether it adds noise."""
        return self.tau > 0

    def scheduler(self, levels: Levels) -> Any:
        from diffusers import SASolverScheduler

        low, high = self.tau_interval
        taus = [self.tau if low <= ratio <= high else 0.0 for ratio in levels.nsr.tolist()]
        scheduler = SASolverScheduler(
            prediction_type="sample",
            predictor_order=self.predictor_order,
            corrector_order=max(1, self.corrector_order),
            tau_func=lambda step: torch.tensor(taus[int(step)], dtype=torch.float64),
        )
        return scheduler

    def step(self, scheduler: Any, x0: Tensor, index: int, x: Tensor, noise: Tensor | None) -> Tensor:
        # The scheduler would draw its own noise. Ours takes its place, in the prediction and in the later correction.
        if self.corrector_order == 0:
            scheduler.last_sample = None
        ours = torch.zeros_like(x) if noise is None else noise
        predict = type(scheduler).stochastic_adams_bashforth_update
        scheduler.stochastic_adams_bashforth_update = lambda *args, noise, **kwargs: predict(
            scheduler, *args, noise=ours, **kwargs
        )
        unused = torch.Generator(x.device)  # leaves torch's own random numbers as they are
        following: Tensor = scheduler.step(x0, scheduler.timesteps[index], x, generator=unused).prev_sample
        scheduler.last_noise = ours
        return following


def _dpm(order: int, algorithm: str) -> Any:
    """Return the scheduler of DPM-Solver++ of an order."""
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(prediction_type="sample", solver_order=order, algorithm_type=algorithm)
