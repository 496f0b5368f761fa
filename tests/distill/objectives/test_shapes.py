"""Objectives on samples of any shape (C, *spatial): a line, a non-square image, a video (C, F, H, W)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distill import EDM, Condition, Denoiser, Flow, Path, Random, UserError
from distill.objectives import Batch, Denoisers, Objective, Pairs
from distill.objectives.dmd2 import DMD2
from distill.objectives.hipa import HiPA
from distill.objectives.sid import SiD
from distill.teachers import GaussianMixture
from tests.toys import ALL_OBJECTIVES, Tanh

SHAPES = {"line": (2, 6), "image": (2, 3, 5), "video": (2, 3, 4, 4)}


def mixture(path: Path, shape: tuple[int, ...]) -> GaussianMixture:
    """Return the exact denoiser of three classes of samples of `shape`."""
    means = torch.linspace(-1, 1, 3 * math.prod(shape)).reshape(3, *shape)
    return GaussianMixture(path, means, torch.tensor([0.3, 0.5, 0.9]))


def case(
    objective: Objective, path: Path, shape: tuple[int, ...], teacher: Denoiser
) -> tuple[Denoisers, Tensor, Batch]:
    """Return four samples of `shape` that carry a graph, with a fake that trains."""
    torch.manual_seed(0)
    fake = objective.build_fake(Denoiser(Tanh(math.prod(shape), 2, shape=shape), path, "v"))
    index = torch.arange(4)
    random, cond = Random.at(0, index), Condition(labels=index % 3)
    x = Random.at(1, index).normal(*shape).requires_grad_()
    noise, real = random.stream("latent").normal(*shape), torch.tanh(x.detach())
    frozen = objective.load_frozen() | {"weak_teacher": mixture(path, shape)}
    nets = Denoisers(path, teacher.requires_grad_(False), fake, frozen, objective.new_memory(), images=10**9)
    return nets, x, Batch(noise, random, cond, real, Pairs(noise, torch.tanh(noise), cond, x))


def check_losses(objective: Objective, nets: Denoisers, x: Tensor, batch: Batch) -> None:
    """Assert that all terms are finite, [B], and that they reach the generator and every weight of the fake."""
    objective.check(nets.teacher)  # type: ignore[arg-type]
    for loss in (objective.generator_loss, objective.fake_loss):
        terms = loss(nets, x, batch)
        assert terms
        for term in terms.values():
            assert term.shape == (4,) and term.dtype == torch.float32 and bool(term.isfinite().all())
        torch.stack(list(terms.values())).sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all()) and bool((x.grad != 0).flatten(1).any(1).all())
    fake: Denoiser = nets.fake  # type: ignore[assignment]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in fake.parameters())


@pytest.mark.parametrize("objective", [SiD(), DMD2()], ids=["sid", "dmd2"])
@pytest.mark.parametrize("path", [EDM(), Flow()], ids=["edm", "flow"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_exact_teacher_of_any_shape(objective: Objective, path: Path, shape: tuple[int, ...]) -> None:
    check_losses(objective, *case(objective, path, shape, mixture(path, shape)))


@pytest.mark.parametrize("objective", ALL_OBJECTIVES.values(), ids=ALL_OBJECTIVES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_objective_trains_on_any_shape(objective: Objective, shape: tuple[int, ...]) -> None:
    teacher = Denoiser(Tanh(math.prod(shape), 1, shape=shape), Flow(), "v")
    if isinstance(objective, HiPA) and len(shape) == 2:
        line = r"^objective: HiPA needs samples with rows and columns, the teacher's are \(2, 6\)$"
        with pytest.raises(UserError, match=line):
            objective.check(teacher)
        return
    check_losses(objective, *case(objective, Flow(), shape, teacher))


def test_a_sample_is_the_same_in_every_shape() -> None:
    """Losses are sums over elements: the layout of a sample's elements does not matter where no head reads it."""
    for objective in (SiD(), ALL_OBJECTIVES["diff_instruct"], ALL_OBJECTIVES["fgm"]):
        terms = []
        for shape in ((2, 24), (2, 4, 6), (2, 2, 3, 4)):
            nets, x, batch = case(objective, Flow(), shape, mixture(Flow(), shape))
            terms.append(
                [*objective.generator_loss(nets, x, batch).values(), *objective.fake_loss(nets, x, batch).values()]
            )
        for other in terms[1:]:
            assert all(torch.equal(a, b) for a, b in zip(terms[0], other, strict=True))
