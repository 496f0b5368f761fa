"""Multi-step sampling of any denoiser with diffusers' schedulers.

In the coordinate x_t / alpha, with the noise-to-signal ratio as its time, every Gaussian path becomes EDM's and every
probability flow ODE becomes the same curve. One sampler on EDM's ramp of noise levels therefore serves all paths.
"""

import torch
from torch import Tensor

from distill.conditions import ConditionLike
from distill.denoiser import GuidableDenoiser
from distill.errors import UserError
from distill.random import expand


def heun_steps(evaluations: int) -> int:
    """Return the number of steps n of Heun's method that takes `evaluations` = 2 n - 1 network evaluations.

    Raises:
        UserError: The number of evaluations is even, or less than 3.
    """
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
    """Solve the probability flow ODE by Heun's method, from noise to samples.

    The steps follow EDM's ramp from the noise-to-signal ratio `high` to `low`, and then go to 0 (arXiv:2206.00364,
    algorithm 1 without churn), in diffusers' HeunDiscreteScheduler. A discrete path limits the ramp to its own range,
    and each step takes the nearest level of its grid.

    Args:
        denoiser: The denoiser, guided or not.
        z: Unit normal noise [B, ...].
        cond: The condition [B, ...], or None for an unconditional denoiser.
        evaluations: The number of network evaluations, odd and at least 3. The paper has 35 for CIFAR-10.
        low: The smallest noise-to-signal ratio above 0.
        high: The largest noise-to-signal ratio.

    Returns:
        Samples [B, ...] without a graph.

    Raises:
        UserError: The number of evaluations is even, or less than 3.
    """
    from diffusers import HeunDiscreteScheduler

    steps = heun_steps(evaluations)
    scheduler = HeunDiscreteScheduler(prediction_type="sample", use_karras_sigmas=True)
    path = denoiser.path
    ends = path.nsr(path.time(torch.tensor([low, high], dtype=torch.float64)))
    scheduler.register_to_config(sigma_min=float(ends[0]), sigma_max=float(ends[1]))
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    # The scheduler's own levels are replaced by those that the path has, so that each time and its level agree.
    times = path.time(scheduler.sigmas[:-1].double())
    scheduler.sigmas = torch.cat([path.nsr(times), torch.zeros(1, dtype=torch.float64)])
    x: Tensor = scheduler.sigmas[0] * z
    for time, timestep in zip(times.tolist(), scheduler.timesteps, strict=True):
        t = torch.full((len(z),), time, dtype=torch.float64, device=z.device)
        x0 = denoiser(expand(path.alpha(t), x).to(x.dtype) * x, t, cond)
        x = scheduler.step(x0, timestep, x).prev_sample
    return x
