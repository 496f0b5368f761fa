"""HiPA, High-frequency-Promoting Adaptation (Zhang et al., arXiv:2311.18158).

Adapters alone turn one step of the teacher into a usable image, by regression on what its many steps make of the same
noise. What a single step lacks is high frequencies, so these get a loss of their own. Only the abstract was at hand:
the two terms are the paper's, their exact form and every number here are ours ("unverified").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.objectives.objective import Batch, Denoisers, Objective
from distill.perceptual import MSE, Perceptual


def high_pass(x: Tensor, cutoff: float) -> Tensor:
    """Return `x` [..., H, W] without its frequencies below `cutoff`, a fraction in (0, 1) of the Nyquist frequency."""
    rows, columns = (torch.fft.fftfreq(size, device=x.device) for size in x.shape[-2:])
    passed = 2 * (rows[:, None] ** 2 + columns**2).sqrt() >= cutoff
    high: Tensor = torch.fft.ifft2(torch.fft.fft2(x) * passed).real
    return high


def edges(x: Tensor) -> Tensor:
    """Return Sobel's two derivatives of each H x W map in `x` [..., H, W], inside its border: [N, 2, H - 2, W - 2]."""
    sobel = torch.tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=x.device, dtype=x.dtype) / 8
    return conv2d(x.flatten(0, -3)[:, None], torch.stack([sobel, sobel.T])[:, None])


def high_frequency_loss(made: Tensor, target: Tensor, cutoff: float) -> Tensor:
    """Return the mean squares [P] of the difference of samples [P, C, ..., H, W] above `cutoff` and of its edges."""
    difference = made - target  # both maps are linear
    parts = high_pass(difference, cutoff), edges(difference).unflatten(0, difference.shape[:-2])
    return torch.stack([(part**2).flatten(1).mean(1) for part in parts]).sum(0)


@dataclass(frozen=True, kw_only=True)
class HiPA(Objective):
    """Regression on ODE pairs without a fake; meant for a generator of adapters (generator.lora)."""

    perceptual: Perceptual = MSE()  # the paper's is of deep features; such weights are a download
    high_frequency: float = 1.0  # unverified
    cutoff: float = 0.5  # unverified

    needs = frozenset({"pairs"})
    trains_fake = False
    uses_samples = False

    def __post_init__(self) -> None:
        if not 0 < self.cutoff < 1:
            raise UserError(f"cutoff: must be between 0 and 1, got {self.cutoff}")
        if not self.high_frequency >= 0:
            raise UserError(f"high_frequency: must be at least 0, got {self.high_frequency}")

    def check(self, teacher: Denoiser) -> None:
        super().check(teacher)
        self.perceptual.check(teacher)
        if len(shape := teacher.network.shape) == 2:
            raise UserError(f"objective: HiPA needs samples with rows and columns, the teacher's are {shape}")

    def load_frozen(self) -> dict[str, nn.Module]:
        return {"perceptual": self.perceptual.network()}

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        assert batch.pairs is not None and batch.pairs.made is not None
        made, target = batch.pairs.made, batch.pairs.target
        size = made[0].numel()  # terms are sums over elements
        return {
            "perceptual": size * self.perceptual.distance(made, target, nets.frozen["perceptual"]),
            "high_frequency": size * self.high_frequency * high_frequency_loss(made, target, self.cutoff),
        }
