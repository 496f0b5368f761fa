"""Weights of the denoising loss |D(x_t) - x0|^2, named after the network output whose plain error they amount to."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from distill.errors import UserError

Weight = Literal["edm", "eps", "v", "velocity", "x0"]


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
