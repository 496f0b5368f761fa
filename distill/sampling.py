"""Multi-step sampling of any denoiser with diffusers' schedulers.

In the canonical coordinate x_t/alpha at its noise-to-signal ratio every Gaussian path is EDM's, and the probability
flow ODE is the same curve. So one driver serves all of them, on EDM's ramp of noise levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.conditions import ConditionLike
from distill.denoiser import GuidableDenoiser
from distill.errors import UserError
from distill.random import expand


def heun_steps(evaluations: int) -> int:
    """The steps of Heun's method with 2 steps - 1 `evaluations`; raises UserError for an even number or less than 3."""
    if evaluations < 3 or evaluations % 2 == 0:
        raise UserError(f"evaluations: Heun's method takes an odd number of at least 3, got {evaluations}")
    return (evaluations + 1) // 2


@torch.no_grad()
def sample(
    denoiser: GuidableDenoiser,
    z: Tensor,
    cond: ConditionLike = None,
    evaluations: int = 35,
    low: float = 0.002,
    high: float = 80.0,
) -> Tensor:
    """Solve the probability flow ODE from unit normal `z` [B, ...] to samples [B, ...].

    Heun's method with `evaluations` = 2 steps - 1 network calls on EDM's ramp from noise-to-signal ratio `high` to
    `low` and then to 0 (arXiv:2206.00364, algorithm 1 without churn; 35 is the paper's CIFAR-10 setting), through
    diffusers' HeunDiscreteScheduler. On a discrete path the ramp spans what the path has of that range and steps on
    its own levels. Raises UserError as heun_steps does.
    """
    from diffusers import HeunDiscreteScheduler

    steps = heun_steps(evaluations)
    scheduler = HeunDiscreteScheduler(prediction_type="sample", use_karras_sigmas=True)
    path = denoiser.path
    ends = path.nsr(path.time(torch.tensor([low, high], dtype=torch.float64)))
    scheduler.register_to_config(sigma_min=float(ends[0]), sigma_max=float(ends[1]))
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    times = path.time(scheduler.sigmas[:-1].double())
    scheduler.sigmas = torch.cat([path.nsr(times), torch.zeros(1, dtype=torch.float64)])
    x: Tensor = scheduler.sigmas[0] * z
    for time, timestep in zip(times.tolist(), scheduler.timesteps, strict=True):
        t = torch.full((len(z),), time, dtype=torch.float64, device=z.device)
        x0 = denoiser(expand(path.alpha(t), x).to(x.dtype) * x, t, cond)
        x = scheduler.step(x0, timestep, x).prev_sample
    return x
