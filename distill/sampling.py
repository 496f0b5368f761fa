"""Multi-step sampling of any denoiser with diffusers' schedulers.

In the canonical coordinate x_t/alpha at its noise-to-signal ratio every Gaussian path is EDM's, and the probability
flow ODE is the same curve. So one driver serves all of them, on EDM's ramp of noise levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.denoiser import Condition, Denoiser
from distill.errors import UserError
from distill.random import expand


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    z: Tensor,
    cond: Condition = None,
    evaluations: int = 35,
    low: float = 0.002,
    high: float = 80.0,
) -> Tensor:
    """Solve the probability flow ODE from unit normal `z` [B, ...] to samples [B, ...].

    Heun's method with `evaluations` = 2 steps - 1 network calls on EDM's ramp from noise-to-signal ratio `high` to
    `low` and then to 0 (arXiv:2206.00364, algorithm 1 without churn; 35 is the paper's CIFAR-10 setting), through
    diffusers' HeunDiscreteScheduler. Raises UserError for an even or non-positive number of evaluations.
    """
    from diffusers import HeunDiscreteScheduler

    if evaluations < 3 or evaluations % 2 == 0:
        raise UserError(f"evaluations: Heun's method takes an odd number of at least 3, got {evaluations}")
    scheduler = HeunDiscreteScheduler(prediction_type="sample", use_karras_sigmas=True)
    scheduler.register_to_config(sigma_min=low, sigma_max=high)
    scheduler.set_timesteps((evaluations + 1) // 2)
    scheduler.set_begin_index(0)
    path = denoiser.path
    x = high * z
    for nsr, timestep in zip(scheduler.sigmas[:-1], scheduler.timesteps, strict=True):
        t = path.time(torch.full((len(z),), float(nsr), dtype=torch.float64, device=z.device))
        x0 = denoiser(expand(path.alpha(t), x).to(x.dtype) * x, t, cond)
        x = scheduler.step(x0, timestep, x).prev_sample
    return x
