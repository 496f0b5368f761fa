"""Small pieces that the tests of the mathematics share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor, nn

from distill.conditions import Condition, ConditionLike
from distill.denoiser import Denoiser
from distill.discriminator import Want
from distill.networks.network import Network, null_label
from distill.objectives import OBJECTIVES, Objective
from distill.objectives.autoguided import Autoguided
from distill.objectives.decoupled import Decoupled
from distill.objectives.diff_instruct import DiffInstruct
from distill.objectives.dmd import DMD
from distill.objectives.guided import Guided
from distill.objectives.rewarded import Rewarded
from distill.objectives.sid import SiD
from distill.paths import PATHS, Flow, Path
from distill.random import Random, expand
from distill.rewards import Reward
from distill.teachers import GaussianMixture
from distill.times import Times


@dataclass(frozen=True)
class At(Times):
    """The law under which every time has one noise-to-signal ratio."""

    ratio: float = 1.0

    def nsr(self, u: Tensor, path: Path) -> Tensor:
        return torch.full_like(u, self.ratio)


@dataclass(frozen=True)
class _Given:
    noise: Tensor
    u: Tensor

    def stream(self, name: str) -> _Given:
        return self

    def uniform(self, *shape: int) -> Tensor:
        assert shape == (), shape
        return self.u

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        assert shape == self.noise.shape[1:]
        return self.noise.to(dtype)


def given(noise: Tensor, u: Tensor | None = None) -> Random:
    """Return a Random that hands out this `noise` [B, ...] and `u` [B] (default 1/2), whatever the stream."""
    u = torch.full((len(noise),), 0.5) if u is None else u
    return cast(Random, _Given(noise, u.double()))


class Normal(Denoiser):
    """The exact denoiser of N(mean [D], covariance [D, D]) on samples [B, D]: linear in x_t."""

    def __init__(self, path: Path, mean: Tensor, covariance: Tensor) -> None:
        super().__init__(Network(), path, "x0")
        self.mean, self.covariance = nn.Buffer(mean.detach()), nn.Buffer(covariance.detach())

    def forward(self, x_t: Tensor, t: Tensor, cond: ConditionLike = None) -> Tensor:
        marginal, offset = self._marginal(x_t, t)
        shift: Tensor = self.path.alpha(t)[:, None, None] * self.covariance @ torch.linalg.solve(marginal, offset)
        return self.mean + shift[..., 0]

    def log_density(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the logarithm of the density of x_t [B, D], but for a constant, [B]."""
        marginal, offset = self._marginal(x_t, t)
        distance = (offset * torch.linalg.solve(marginal, offset)).sum((1, 2))
        return -(distance + torch.linalg.slogdet(marginal).logabsdet) / 2

    def _marginal(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.path.alpha(t)[:, None, None], self.path.sigma(t)[:, None, None]
        marginal = alpha**2 * self.covariance + sigma**2 * torch.eye(len(self.mean), dtype=x_t.dtype)
        return marginal, (x_t - alpha[:, :, 0] * self.mean)[..., None]


class White(GaussianMixture):
    """One Gaussian N(mean, std^2 I) on samples of any shape, by `means` [1, ...] and `stds` [1]."""

    def log_density(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the logarithm of the density of x_t [B, ...], but for a constant, [B]."""
        variance = (self.path.alpha(t) * self.stds) ** 2 + self.path.sigma(t) ** 2
        offset = (x_t - expand(self.path.alpha(t), x_t) * self.means).flatten(1)
        return -((offset**2).sum(1) / variance + offset.shape[1] * variance.log()) / 2


class ExactCritic(nn.Module):
    """The fake with the best discriminator there is: its logits [B, 1] are log p_teacher(x_t) - log p_fake(x_t)."""

    def __init__(self, teacher: Normal | White, fake: Normal | White) -> None:
        super().__init__()
        self.teacher, self.fake = teacher, fake

    def forward(self, x_t: Tensor, t: Tensor, cond: ConditionLike = None, want: Want = "x0") -> Any:
        if want == "x0":
            return self.fake(x_t, t, cond)
        logits = (self.teacher.log_density(x_t, t) - self.fake.log_density(x_t, t))[:, None]
        return logits if want == "logits" else (self.fake(x_t, t, cond), logits)


class Tanh(Network):
    """A small network that is smooth in x and in time, with parameters.

    Its features, at every tap, are its output. The null condition is the label after the classes.
    """

    taps: ClassVar[dict[str, str]] = {"encoder": "", "middle": ""}

    def __init__(self, size: int, seed: int, classes: int = 3, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.shape, self.classes = shape or (size,), classes
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(size, size, generator=generator) / size**0.5)
        self.bias = nn.Parameter(torch.randn(size, generator=generator))
        self.label = nn.Parameter(torch.randn(classes + 1, size, generator=generator))
        self.null = null_label(classes)

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        bias = self.bias if cond.labels is None else self.bias + self.label[cond.labels]
        hidden = (x.flatten(1) @ self.weight + bias).tanh() * expand(1 + 0.1 * (time / 1000).sin(), x.flatten(1))
        return hidden.reshape(x.shape)


def hermite(dimensions: int, nodes: int = 4) -> tuple[Tensor, Tensor]:
    """Return nodes [nodes^dimensions, dimensions] and weights of the standard normal, exact to degree 2 nodes - 1."""
    x, w = (torch.from_numpy(array) for array in hermegauss(nodes))
    grid = torch.cartesian_prod(*[x] * dimensions).reshape(-1, dimensions)
    weights = torch.cartesian_prod(*[w / w.sum()] * dimensions).reshape(-1, dimensions).prod(1)
    return grid, weights


def gradients(loss: Callable[..., Tensor], *at: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of `loss(*at)` in each argument."""
    leaves = [value.detach().clone().requires_grad_() for value in at]
    return torch.autograd.grad(loss(*leaves), leaves)


@dataclass(frozen=True, kw_only=True)
class ToyAutoguided(Autoguided):
    """Autoguidance by a weak teacher that needs no folder and fits every path."""

    weak_teacher: str = "toy"

    def load_frozen(self) -> dict[str, nn.Module]:
        return {"weak_teacher": Denoiser(Tanh(18, 3), Flow(), "x0")}


@dataclass(frozen=True, kw_only=True)
class Nearness(Reward):
    """The reward -|x - 1/2|^2/2."""

    name: ClassVar[str] = "nearness"

    def load(self) -> nn.Module:
        return _Nearness()


class _Nearness(nn.Module):
    def forward(self, x: Tensor, cond: ConditionLike = None) -> Tensor:
        return -((x - 0.5) ** 2).flatten(1).sum(1) / 2


ALL_PATHS = {name: cls() for name, cls in PATHS.items()}
EXAMPLES: dict[str, Objective] = {  # objectives whose defaults do not suffice
    "guided": Guided(objective=SiD(), teacher_cfg=2.0, fake_cfg=-0.5, fake_training_cfg=1.5, condition_dropout=0.0),
    "decoupled": Decoupled(objective=DiffInstruct()),
    "autoguided": ToyAutoguided(objective=SiD()),
    "rewarded": Rewarded(objective=DiffInstruct(), reward=Nearness(), reward_scale=3.0),
}
ALL_OBJECTIVES = {name: EXAMPLES.get(name) or cls() for name, cls in OBJECTIVES.items()}
PAIRLESS = {n: each for n, each in ALL_OBJECTIVES.items() if "pairs" not in each.needs} | {"dmd": DMD(regression=0.0)}
ON_SAMPLES = {name: objective for name, objective in ALL_OBJECTIVES.items() if objective.uses_samples}
