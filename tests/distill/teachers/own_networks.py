"""Networks of a user's own: what tests/distill/teachers/test_own.py names in denoiser.json."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distill.paths import EDM, DiscreteVP, Flow, Path
from distill.random import expand
from distill.teachers import GaussianMixture

SHAPE = (1, 2, 2)


class Small(nn.Module):
    """A plain network with tensors of every sort: weights, buffers in and out of the state dict, a whole number."""

    def __init__(self, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)
        self.classes = nn.Embedding(classes, width)
        self.register_buffer("seen", torch.tensor(2**24 + 1))  # no float32 has this value
        self.register_buffer("frequency", torch.tensor(0.25), persistent=False)
        self.plain = torch.tensor(2.0)

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        h = self.enter(x) + (self.frequency * time / self.plain).sin()[:, None, None, None]
        if labels is not None:
            h = h + self.classes(labels)[:, :, None, None]
        out: Tensor = self.leave(h.tanh())
        return out


class Wide(Small):
    """Twice the channels that it was asked for."""

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        return super().forward(x, time, labels).expand(-1, 2, -1, -1)


class Unlabelled(Small):
    def forward(self, x: Tensor, time: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, time)


class Broken(Small):
    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        raise RuntimeError("one\ntwo")


def function(width: int = 4) -> Small:
    return Small(width)


class Mixture(nn.Module):
    """The exact denoiser of a mixture of pixels in [0, 1] on `path`; its weights are the means and stds."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.means, self.stds = path, nn.Buffer(torch.zeros(3, *SHAPE)), nn.Buffer(torch.ones(3))

    def clean(self, y_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """E[y0 | y_t], in double: the means and stds in it would be rounded otherwise."""
        teacher = GaussianMixture(self.path, self.means.double(), self.stds.double())
        return teacher(y_t.double(), t.double(), labels)


def _grow(values: Tensor, like: Tensor) -> Tensor:
    return expand(values, like).to(like.dtype)


class NoiseByLevel(Mixture):
    """Noise from its level, as EDM's path has it: y_t = y0 + sigma noise."""

    def __init__(self) -> None:
        super().__init__(EDM())

    def forward(self, y_t: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        return ((y_t - self.clean(y_t, sigma, labels)) / _grow(sigma, y_t)).to(y_t.dtype)


class VelocityByTime(Mixture):
    """Velocity from a time in [0, 1] that runs from noise to data: y_t = t y0 + (1 - t) noise, u = y0 - noise."""

    def __init__(self) -> None:
        super().__init__(Flow())

    def forward(self, y_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        y0 = self.clean(y_t, 1 - t, labels)
        return ((y0 - y_t) / _grow(1 - t, y_t)).to(y_t.dtype)


class NoiseByStep(Mixture):
    """Noise from a whole step of Stable Diffusion's grid."""

    def __init__(self) -> None:
        super().__init__(DiscreteVP())

    def forward(self, y_t: Tensor, step: Tensor, labels: Tensor) -> Tensor:
        assert step.dtype == torch.int64
        alpha, sigma = (_grow(scale(step.double()), y_t) for scale in (self.path.alpha, self.path.sigma))
        return ((y_t - alpha * self.clean(y_t, step, labels)) / sigma).to(y_t.dtype)


# What a user writes: the same networks for samples x = 2 y - 1, on EDM's path x_t = x0 + sigma noise or on a grid.
class LevelOfSamples(NoiseByLevel):
    def forward(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        return super().forward((x + 1) / 2, (time / 250).exp() / 2, labels)


class TimeOfSamples(VelocityByTime):
    def forward(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        t = 1 / (1 + (time / 250).exp() / 2)
        signal = t[:, None, None, None]
        y_t = signal * (x + 1) / 2
        return 2 * (y_t + (1 - signal) * super().forward(y_t, t, labels)) - 1


class StepOfSamples(NoiseByStep):
    def forward(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        step = time.round().long()
        alpha, ours = (path.alpha(step.double())[:, None, None, None] for path in (self.path, halved(self.path)))
        y_t = alpha * (x / ours + 1) / 2
        return super().forward(y_t.to(x.dtype), step, labels)


def halved(path: Any) -> DiscreteVP:
    """The grid on which x = 2 y - 1 sees the steps of `path` for y: twice the noise-to-signal ratio at each."""
    signal = path.alphas_cumprod / (path.alphas_cumprod + 4 * (1 - path.alphas_cumprod))
    ratios = signal / torch.cat([torch.ones(1, dtype=torch.float64), signal[:-1]])
    return DiscreteVP(betas=tuple((1 - ratios).tolist()))
