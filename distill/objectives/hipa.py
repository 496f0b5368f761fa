"""HiPA, High-frequency-Promoting Adaptation (Zhang et al., arXiv:2311.18158).

Adapters turn one step of the teacher into a usable image, by regression on the samples that its many steps make from
the same noise. A single step lacks high frequencies, so they have a loss of their own. Only the abstract was at hand.
The two terms are the paper's, and their exact form and every number are ours ("unverified").
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from distill.denoiser import Denoiser
from distill.errors import UserError, require
from distill.objectives.objective import Batch, Denoisers, Objective
from distill.perceptual import MSE, Perceptual


def high_pass(x: Tensor, cutoff: float) -> Tensor:
    """Return `x` [..., H, W] without its frequencies below `cutoff`, a fraction in (0, 1) of the Nyquist frequency."""
    rows, columns = (torch.fft.fftfreq(size, device=x.device) for size in x.shape[-2:])
    passed = 2 * (rows[:, None] ** 2 + columns**2).sqrt() >= cutoff
    return cast(Tensor, torch.fft.ifft2(torch.fft.fft2(x) * passed).real)


def edges(x: Tensor) -> Tensor:
    """Return Sobel's two derivatives of each H x W map in `x` [..., H, W], inside its border: [N, 2, H - 2, W - 2]."""
    sobel = torch.tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=x.device, dtype=x.dtype) / 8
    return conv2d(x.flatten(0, -3)[:, None], torch.stack([sobel, sobel.T])[:, None])


def high_frequency_loss(made: Tensor, target: Tensor, cutoff: float) -> Tensor:
    """Return the mean squares [P] of the difference of samples [P, C, ..., H, W] above `cutoff` and of its edges."""
    difference = made - target  # both maps are linear, so they are applied once, to the difference
    parts = high_pass(difference, cutoff), edges(difference).unflatten(0, difference.shape[:-2])
    return torch.stack([(part**2).flatten(1).mean(1) for part in parts]).sum(0)


@dataclass(frozen=True, kw_only=True)
class HiPA(Objective):
    """The objective of HiPA: regression on ODE pairs, for a generator of adapters (generator.lora), without a fake.

    Attributes:
        perceptual: The distance of the regression.
        high_frequency: The weight of the loss of high frequencies and edges.
        cutoff: The frequency from which on they count, as a fraction of the Nyquist frequency.
    """

    perceptual: Perceptual = MSE()  # the paper's distance is of deep features, whose weights must be downloaded
    high_frequency: float = 1.0  # unverified
    cutoff: float = 0.5  # unverified

    needs = frozenset({"pairs"})
    trains_fake = False
    uses_samples = False

    def __post_init__(self) -> None:
        require(0 < self.cutoff < 1, f"cutoff: must be between 0 and 1, got {self.cutoff}")
        require(self.high_frequency >= 0, f"high_frequency: must be at least 0, got {self.high_frequency}")

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
        decoder = nets.teacher.network.autoencoder
        size = made[0].numel()  # terms are sums over the elements of a sample
        return {
            "perceptual": size * self.perceptual.of_samples(made, target, nets.frozen["perceptual"], decoder),
            "high_frequency": size * self.high_frequency * high_frequency_loss(made, target, self.cutoff),
        }
