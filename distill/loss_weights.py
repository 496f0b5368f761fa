"""Weights by noise: of the denoising loss |D(x_t) - x0|^2, where any positive one has the same optimum, named after the
network output whose plain error they amount to; and of a generator's loss, where they say which noise levels count.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from distill.errors import UserError

Weight = Literal["edm", "eps", "v", "velocity", "x0"]
GeneratorWeight = Literal["none", "1-t", "(1-t)^2", "1/t", "snr", "snr/(1+snr)"]


def denoising_weight(weight: Weight, nsr: Tensor, sigma_data: float = 0.5) -> Tensor:
    """The weight [B] at noise-to-signal ratios `nsr` [B] (any positive weight has the same optimum).

    edm: (nsr^2 + sd^2)/(nsr sd)^2, EDM's lambda (arXiv:2206.00364, table 1); eps: 1/nsr^2; v: 1 + 1/nsr^2;
    velocity: 1/t^2 with the flow time t = nsr/(1 + nsr), the plain velocity error of a rectified flow; x0: 1.
    Raises UserError for an unknown name.
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
    """The weight [B] of a generator's loss in x0 at noise-to-signal ratios `nsr` [B].

    Flow time t = nsr/(1 + nsr) and snr = 1/nsr^2 are ratios themselves, so that a name means the same on every path:
    none 1; 1-t 1/(1 + nsr); (1-t)^2 1/(1 + nsr)^2; 1/t 1 + 1/nsr; snr 1/nsr^2; snr/(1+snr) 1/(1 + nsr^2). SiD's code
    for flow transformers (arXiv:2509.25127) offers the first four, 1-t by default, and some of snr (unverified which).
    Raises UserError for an unknown name.
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
