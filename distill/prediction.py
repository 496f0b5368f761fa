"""The conversion between the output of a network and its estimate of the clean sample x0.

Paths, objectives and samplers know no prediction kinds. They see estimates of x0 alone. With x_t = alpha x0 + sigma
noise, primes for d/dt, and J = alpha' sigma - alpha sigma', the kinds and their conversions are

    eps       noise                              x0 = (x_t - sigma eps) / alpha
    v         alpha noise - sigma x0, in the     x0 = (alpha x_t - sigma v) / (alpha^2 + sigma^2)
              path's own alpha and sigma
    velocity  u = alpha' x0 + sigma' noise       x0 = (sigma u - sigma' x_t) / J
    score     s = -noise / sigma                 x0 = (x_t + sigma^2 s) / alpha
    edm       F of EDM's preconditioning         x0 = c_skip x_t/alpha + c_out F
              (arXiv:2206.00364, table 1), for the sample x_t/alpha at the noise level sigma/alpha
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from distill.paths import Path, beside

Kind = Literal["x0", "eps", "v", "velocity", "score", "edm"]
KINDS: tuple[str, ...] = get_args(Kind)


class Coefficients(NamedTuple):
    """The coefficients, float64 [B] each, in x0 = from_x_t * x_t + from_output * output.

    `input_scale` is the factor on x_t before it enters the network.
    """

    from_x_t: Tensor
    from_output: Tensor
    input_scale: Tensor


def coefficients(kind: Kind, path: Path, t: Tensor, sigma_data: float = 0.5) -> Coefficients:
    """Return the affine map from x_t and the network's output to x0.

    Args:
        kind: The prediction kind of the network.
        path: The path of x_t.
        t: Times [B] on the path.
        sigma_data: The standard deviation of the data, which the kind `edm` alone uses.
    """
    t = t.double()  # alpha is small near pure noise, and float32 would lose digits in the divisions by it
    alpha, sigma, one = path.alpha(t), path.sigma(t), torch.ones_like(t)
    if kind == "x0":
        return Coefficients(torch.zeros_like(t), one, one)
    if kind == "eps":
        return Coefficients(1 / alpha, -sigma / alpha, one)
    if kind == "v":
        power = alpha**2 + sigma**2
        return Coefficients(alpha / power, -sigma / power, one)
    if kind == "velocity":
        alpha_dot, sigma_dot = path.derivatives(t)
        jacobian = alpha_dot * sigma - alpha * sigma_dot
        return Coefficients(-sigma_dot / jacobian, sigma / jacobian, one)
    if kind == "score":
        return Coefficients(1 / alpha, sigma**2 / alpha, one)
    nsr = sigma / alpha
    total = nsr**2 + sigma_data**2
    return Coefficients(sigma_data**2 / total / alpha, nsr * sigma_data / total.sqrt(), 1 / (alpha * total.sqrt()))


def from_x0(kind: Kind, path: Path, x0: Tensor, x_t: Tensor, t: Tensor, sigma_data: float = 0.5) -> Tensor:
    """Return the output of a network of this kind whose estimate of the clean sample is `x0`.

    This is the inverse of the conversion in Denoiser.

    Args:
        kind: The prediction kind of the output.
        path: The path of `x_t`.
        x0: The estimate of the clean sample [B, ...].
        x_t: The noisy sample [B, ...].
        t: Times [B] on the path.
        sigma_data: The standard deviation of the data, which the kind `edm` alone uses.

    Returns:
        The output [B, ...].
    """
    from_x_t, from_output, _ = beside(x_t, *coefficients(kind, path, t, sigma_data))
    return (x0 - from_x_t * x_t) / from_output
