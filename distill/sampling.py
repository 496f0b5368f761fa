"""Multi-step sampling of any denoiser by Heun's method, EDM's sampler. `distill.samplers` has the others."""

from torch import Tensor

from distill.conditions import ConditionLike
from distill.denoiser import GuidableDenoiser
from distill.samplers import Heun


def sample(
    denoiser: GuidableDenoiser,
    z: Tensor,
    cond: ConditionLike = None,
    evaluations: int = 35,
    low: float = 0.002,
    high: float = 80.0,
) -> Tensor:
    """Solve the probability flow ODE by Heun's method, from noise to samples.

    Args:
        denoiser: The denoiser, guided or not.
        z: Unit normal noise [B, ...].
        cond: The condition [B, ...], or None for an unconditional denoiser.
        evaluations: The number of network evaluations. The paper has 35 for CIFAR-10.
        low: The smallest noise-to-signal ratio above 0.
        high: The largest noise-to-signal ratio.

    Returns:
        Samples [B, ...] without a graph.

    Raises:
        UserError: The number of evaluations is less than 1, or the ratios do not satisfy 0 < low < high.
    """
    return Heun(evaluations=evaluations, low=low, high=high).sample(denoiser, z, cond)
