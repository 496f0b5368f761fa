"""The one-step generator G(z, cond) = D(scale z, t, cond): a denoiser asked once, at a fixed time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.denoiser import Condition, Denoiser
from distill.errors import UserError


class Generator(nn.Module):
    """Maps unit normal noise to samples with one evaluation of `denoiser`.

    `t` (the time it is conditioned on, on the denoiser's path) and `scale` (the factor on unit noise) are separate
    settings, because published generators differ in both: EDM (2.5, 2.5) in SiD and (80, 80) in DMD2, SD (625,
    sigma(625)) in SiD-LSG and (999, 1) in DMD2, SDXL (399, 1). `scale=None` means sigma(t): pure noise of that time.
    """

    def __init__(self, denoiser: Denoiser, t: float, scale: float | None = None) -> None:
        super().__init__()
        at = torch.tensor([t], dtype=torch.float64)
        sigma = float(denoiser.path.sigma(at))
        if not sigma > 0 or not float(denoiser.path.alpha(at)) >= 0:
            raise UserError(f"generator: t = {t} is not a noisy time of the path {denoiser.path}")
        self.denoiser = denoiser
        self.t = t
        self.scale = sigma if scale is None else scale

    def forward(self, z: Tensor, cond: Condition = None) -> Tensor:
        """Samples [B, ...], float32, for unit normal `z` [B, ...]."""
        t = torch.full((len(z),), self.t, dtype=torch.float64, device=z.device)
        x: Tensor = self.denoiser(self.scale * z, t, cond)
        return x
