"""Weights of losses as functions of the noise level.

Weights of the denoising loss |D(x_t) - x0|^2 have the name of the network output whose plain squared error they give.
Every positive weight has the same optimum. Weights of a generator's loss say which noise levels count.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from distill.errors import UserError

Weight = Literal["edm", "eps", "v", "velocity", "x0"]
GeneratorWeight = Literal["none", "1-t", "(1-t)^2", "1/t", "snr", "snr/(1+snr)"]


def denoising_weight(weight: Weight, nsr: Tensor, sigma_data: float = 0.5) -> Tensor:
    """Return the weight of the denoising loss.

    - edm: (nsr^2 + sd^2) / (nsr sd)^2 for sd = sigma_data, which is EDM's lambda (arXiv:2206.00364, table 1)
    - eps: 1 / nsr^2
    - v: 1 + 1 / nsr^2
    - velocity: 1 / t^2 with the flow time t = nsr / (1 + nsr), the plain velocity error of a rectified flow
    - x0: 1

    Args:
        weight: The name of the weight.
        nsr: Noise-to-signal ratios [B].
        sigma_data: The standard deviation of the data, which `edm` alone uses.

    Returns:
        The weights [B].

    Raises:
        UserError: The name is unknown.
    """
    if weight == "edm":
        return 1 / nsr**2 + 1 / sigma_data**2
    if weight == "eps":
        return 1 / nsr**2
    if weight == "v":
        return 1 + 1 / nsr**2
    if weight == "velocity":
        return (1 + 1 / nsr) ** 2
    if weight == "x0":
        return torch.ones_like(nsr)
    raise UserError(f"weight: must be one of {', '.join(get_args(Weight))}, got {weight!r}")


def generator_weight(weight: GeneratorWeight, nsr: Tensor) -> Tensor:
    """Return the weight of a generator's loss in x0.

    The flow time t = nsr / (1 + nsr) and snr = 1 / nsr^2 are functions of the ratio, so a name means the same on every
    path. SiD's code for flow transformers (arXiv:2509.25127) has the weights none, 1-t (its default), (1-t)^2 and 1/t,
    and some that use snr (unverified which).

    Args:
        weight: The name of the weight, which is also its formula. `none` is 1.
        nsr: Noise-to-signal ratios [B].

    Returns:
        The weights [B].

    Raises:
        UserError: The name is unknown.
    """
    if weight == "none":
        return torch.ones_like(nsr)
    if weight == "1-t":
        return 1 / (1 + nsr)
    if weight == "(1-t)^2":
        return 1 / (1 + nsr) ** 2
    if weight == "1/t":
        return 1 + 1 / nsr
    if weight == "snr":
        return 1 / nsr**2
    if weight == "snr/(1+snr)":
        return 1 / (1 + nsr**2)
    raise UserError(f"weight: must be one of {', '.join(get_args(GeneratorWeight))}, got {weight!r}")
