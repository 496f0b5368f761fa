"""The mixture's denoiser is the posterior mean: by quadrature over x0, and by the gradient of the log density."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill import EDM, VP, DiscreteVP, Flow, Path, Random, UserError
from distill.teachers import GaussianMixture
from tests.toys import ALL_PATHS, Normal

RATIOS = torch.tensor([0.05, 0.5, 2.5, 12.0], dtype=torch.float64)
STDS, WEIGHTS = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64), torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
every_path = pytest.mark.parametrize("path", ALL_PATHS.values(), ids=ALL_PATHS)


def means(*shape: int) -> Tensor:
    return torch.linspace(-1.5, 1.5, 3 * torch.Size(shape).numel()).double().reshape(3, *shape)


def noised(path: Path, *shape: int) -> tuple[Tensor, Tensor]:
    t = path.time(RATIOS)
    x0, noise = torch.randn(2, len(t), *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return path.diffuse(x0, t, noise), t


@every_path
@pytest.mark.parametrize("label", [None, 0, 1, 2, 3])
def test_posterior_mean_by_quadrature(path: Path, label: int | None) -> None:
    x_t, t = noised(path, 1)
    grid = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    components = torch.distributions.Normal(means(1), STDS[:, None]).log_prob(grid).exp()  # [3, grid]
    prior = (WEIGHTS[:, None] * components).sum(0) if label in (None, 3) else components[label]  # 3 is the null one
    likelihood = (-0.5 * ((x_t - path.alpha(t)[:, None] * grid) / path.sigma(t)[:, None]) ** 2).exp()
    exact = (grid * prior * likelihood).sum(1) / (prior * likelihood).sum(1)
    cond = None if label is None else torch.full((4,), label)
    ours = GaussianMixture(path, means(1), STDS, WEIGHTS)(x_t, t, cond)
    assert torch.allclose(ours[:, 0], exact, rtol=1e-9)


@every_path
def test_score_identity(path: Path) -> None:
    """D = (x_t + sigma^2 grad log p_t) / alpha, on images; no weights means equal ones."""
    x_t, t = noised(path, 1, 2, 3)
    alpha, sigma = (c[:, None, None, None] for c in (path.alpha(t), path.sigma(t)))
    x = x_t.clone().requires_grad_()
    density = torch.zeros(4, dtype=torch.float64)
    for mean, std in zip(means(1, 2, 3), STDS, strict=True):
        log_prob = torch.distributions.Normal(alpha * mean, (alpha**2 * std**2 + sigma**2) ** 0.5).log_prob(x)
        density = density + log_prob.flatten(1).sum(1).exp() / 3
    (score,) = torch.autograd.grad(density.log().sum(), x)
    ours = GaussianMixture(path, means(1, 2, 3), STDS)(x_t, t)
    assert torch.allclose(ours, (x_t + sigma**2 * score) / alpha, rtol=1e-7)


@every_path
def test_one_component_is_the_normal_of_the_oracles(path: Path) -> None:
    x_t, t = noised(path, 2)
    ours = GaussianMixture(path, means(2)[:1], STDS[1:2])(x_t, t)
    assert torch.allclose(ours, Normal(path, means(2)[0], 0.16 * torch.eye(2).double())(x_t, t), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", [EDM(), VP(), Flow(), DiscreteVP()], ids=str)
def test_precision(path: Path) -> None:
    """Float32 or better whatever x_t is, with the schedule read at t as it stands: no bfloat16 step index."""
    x_t, t = noised(path, 2)
    teacher = GaussianMixture(path, means(2).float(), STDS.float())
    exact = teacher(x_t, t)
    assert exact.dtype == torch.float64
    assert torch.allclose(teacher(x_t.float(), t).double(), exact, rtol=1e-4, atol=1e-4)
    low = teacher(x_t.bfloat16(), t)
    assert low.dtype == torch.float32
    assert torch.equal(low, teacher(x_t.bfloat16().float(), t))
    assert GaussianMixture(path, means(2), STDS)(x_t.float(), t).dtype == torch.float32


def test_data() -> None:
    """Moments of the mixture, and of each component under its label; the same numbers whatever the batch."""
    teacher = GaussianMixture(EDM(), means(2).float(), STDS.float(), WEIGHTS.float())
    random = Random.at(0, torch.arange(40_000))
    x, share = teacher.data(random), (WEIGHTS / 8)[:, None]
    mean = (share * means(2)).sum(0)
    variance = (share * (means(2) ** 2 + STDS[:, None] ** 2)).sum(0) - mean**2
    assert x.dtype == torch.float32
    assert torch.allclose(x.mean(0).double(), mean, atol=0.02)
    assert torch.allclose(x.var(0).double(), variance, atol=0.03)
    for k in range(3):
        part = teacher.data(random, torch.full((40_000,), k))
        assert torch.allclose(part.mean(0).double(), means(2)[k], atol=0.02)
        assert torch.allclose(part.std(0).double(), STDS[k], rtol=0.02)
    assert torch.equal(teacher.data(Random.at(0, torch.arange(5, 9))), x[5:9])


def test_refusals() -> None:
    for stds in ([0.5, 0.5], [0.5, -0.1, 0.2]):
        with pytest.raises(UserError, match=r"^GaussianMixture: needs one positive std a mean, got 3 means, stds \["):
            GaussianMixture(EDM(), means(2), torch.tensor(stds))
    for weights in ([1.0, 2.0], [1.0, -1.0, 1.0]):
        with pytest.raises(
            UserError, match=r"^GaussianMixture: needs one positive weight a mean, got 3 means, weights"
        ):
            GaussianMixture(EDM(), means(2), STDS, torch.tensor(weights))
