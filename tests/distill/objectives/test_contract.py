"""The contract with the trainer, for every objective on every path: a new objective is tested by being named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill import Denoiser, DiscreteVP, Flow, Path, Random, UserError
from distill.conditions import Condition
from distill.loss_weights import Weight
from distill.objectives import Batch, Denoisers, Objective, Pairs
from distill.objectives.score_mismatching import ScoreMismatching
from distill.objectives.wrapper import Wrapper
from distill.times import Times, UniformSteps
from tests.toys import ALL_OBJECTIVES, ALL_PATHS, ON_SAMPLES, Tanh

SHAPE, SIZE = (2, 3, 3), 18
Call = tuple[Tensor, Tensor, Condition]
"""The arguments of a denoiser: x_t, t and the condition."""


@dataclass
class Case:
    """An objective with frozen toy networks, a batch and a sample that carries a graph."""

    objective: Objective
    nets: Denoisers
    batch: Batch
    x: Tensor
    teacher: nn.Module
    fake: nn.Module
    calls: list[Call] = field(default_factory=list)

    @property
    def conditional(self) -> list[Call]:
        """The calls under the batch's own condition: guidance makes others."""
        return [call for call in self.calls if call[2] is self.batch.cond]


class Watched(Denoiser):
    """A denoiser that keeps the arguments of each of its calls, of whatever kind."""

    calls: list[Call] = []  # noqa: RUF012  while a fake is built; each case has its own

    def _estimate(self, x_t: Tensor, t: Tensor, cond: Any, *tap: Any, **more: Any) -> Any:
        self.calls.append((x_t, t, cond))
        return super()._estimate(x_t, t, cond, *tap, **more)


def make(objective: Objective, path: Path, seed: int = 0, rows: slice = slice(0, 4), bf16: bool = False) -> Case:
    """Samples `rows` of a run under `seed`; networks and x depend on neither but for the rows."""
    autocast = torch.bfloat16 if bf16 else None
    teacher, inner = (Watched(Tanh(SIZE, s, shape=SHAPE), path, "v", autocast_dtype=autocast) for s in (1, 2))
    if bf16:
        teacher.network.bfloat16()
    torch.manual_seed(3)
    fake = objective.build_fake(inner)
    index = torch.arange(8)[rows]
    random = Random.at(seed, index)
    x = Random.at(9, index).normal(*SHAPE).requires_grad_()
    noise, real = random.stream("latent").normal(*SHAPE), torch.tanh(x.detach())
    cond = Condition(labels=index % 3)
    pairs = Pairs(noise.flip(1), noise.flip(2), cond, x.flip(1))
    batch = Batch(noise, random, cond, real, pairs)
    nets = Denoisers(path, teacher, fake, objective.load_frozen(), objective.new_memory(), 10**9, constant_mean)
    case = Case(objective, nets, batch, x, teacher, fake)
    for net in (teacher, inner):
        net.calls = case.calls
    for module in (teacher, fake, *nets.frozen.values()):
        module.requires_grad_(False)
    return case


def constant_mean(values: Tensor) -> Tensor:
    """Return 0.7 as the mean over all ranks, which the samples of a case therefore do not couple."""
    return torch.full_like(values[0], 0.7)


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def asked(objective: Objective) -> int:
    """Return the number of networks that the generator's loss compares at one x_t: teacher and fake, or the fake."""
    return 1 if isinstance(objective, ScoreMismatching) else 2


def changed(objective: Objective, **settings: Any) -> Objective:
    """Return the objective with other settings, which are those of the objective within, where there is one."""
    if isinstance(objective, Wrapper):
        return replace(objective, objective=changed(objective.objective, **settings))
    return replace(objective, **settings)


def has_gradient(tensor: Tensor) -> bool:
    return tensor.grad is not None and bool((tensor.grad != 0).any())


every_objective = pytest.mark.parametrize("objective", ALL_OBJECTIVES.values(), ids=ALL_OBJECTIVES)
on_samples = pytest.mark.parametrize("objective", ON_SAMPLES.values(), ids=ON_SAMPLES)
every_path = pytest.mark.parametrize("path", ALL_PATHS.values(), ids=ALL_PATHS)


@every_objective
@every_path
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_terms(objective: Objective, path: Path, bf16: bool) -> None:
    case = make(objective, path, bf16=bf16)
    for loss in (objective.generator_loss, objective.fake_loss):
        terms = loss(case.nets, case.x, case.batch)
        assert terms
        for name, term in terms.items():
            assert name.isidentifier()
            assert term.shape == (4,)
            assert term.dtype == torch.float32
            assert bool(term.isfinite().all())


@every_objective
@every_path
def test_generator_loss_reaches_x_alone(objective: Objective, path: Path) -> None:
    case = make(objective, path)
    total(objective.generator_loss(case.nets, case.x, case.batch)).backward()
    assert has_gradient(case.x)
    assert all(p.grad is None for net in (case.teacher, case.fake) for p in net.parameters())


@every_objective
@every_path
def test_fake_loss_reaches_the_fake_alone(objective: Objective, path: Path) -> None:
    case = make(objective, path)
    case.fake.requires_grad_(True)
    total(objective.fake_loss(case.nets, case.x, case.batch)).backward()
    assert all(has_gradient(p) for p in case.fake.parameters())
    assert case.x.grad is None
    assert all(p.grad is None for p in case.teacher.parameters())


@on_samples
@every_path
def test_graph_through_the_networks_is_as_declared(objective: Objective, path: Path) -> None:
    case = make(objective, path)
    objective.generator_loss(case.nets, case.x, case.batch)
    assert len(case.conditional) >= asked(objective)
    assert all(x_t.requires_grad == objective.differentiates_denoisers for x_t, _, _ in case.conditional[:2])
    if objective.differentiates_denoisers:  # and the loss depends on it, through each of the two
        for which in range(asked(objective)):
            case.calls.clear()
            terms = objective.generator_loss(case.nets, case.x, case.batch)
            outputs = torch.autograd.grad(total(terms), case.conditional[which][0])
            assert bool((outputs[0] != 0).any())


@every_objective
def test_no_graph_is_built_where_none_is_wanted(objective: Objective) -> None:
    case = make(objective, Flow())
    with torch.no_grad():
        objective.generator_loss(case.nets, case.x, case.batch)
    assert not any(x_t.requires_grad for x_t, _, _ in case.calls)


@on_samples
@every_path
def test_networks_see_the_same_sample_time_and_condition(objective: Objective, path: Path) -> None:
    """Teacher and fake are compared at one x_t, which is x diffused with noise that is not the generator's."""
    case = make(objective, path)
    objective.generator_loss(case.nets, case.x, case.batch)
    (x_t, t, cond), *others = case.conditional[: asked(objective)]
    assert len(others) == asked(objective) - 1
    assert all(torch.equal(x_t, other[0]) and torch.equal(t, other[1]) for other in others)
    assert all(one is case.batch.cond for one in (cond, *(other[2] for other in others)))
    alpha, sigma = (f(t)[:, None, None, None] for f in (path.alpha, path.sigma))
    noise = (x_t.detach() - alpha * case.x.detach()) / sigma
    correlation = torch.corrcoef(torch.stack([noise.flatten(), case.batch.noise.flatten()]))[0, 1]
    assert abs(float(correlation)) < 0.5  # 72 numbers: independent ones stay below with overwhelming probability
    case.calls.clear()
    objective.fake_loss(case.nets, case.x, case.batch)
    later_x_t, later_t, later_cond = case.calls[0]
    assert not torch.equal(later_x_t, x_t)  # a fresh diffusion, at fresh times
    assert not torch.equal(later_t, t)
    assert torch.equal(later_cond["labels"], cond["labels"])


@every_objective
@every_path
def test_losses_are_functions_of_their_arguments(objective: Objective, path: Path) -> None:
    for name in ("generator_loss", "fake_loss"):
        first, again, other, part = (
            total_of(make(objective, path, *args), name) for args in ((), (), (1,), (0, slice(1, 3)))
        )
        assert torch.equal(first, again)
        assert not torch.isclose(first, other).any()
        assert torch.allclose(part, first[1:3], rtol=1e-4)  # samples are coupled through nets.mean alone


def total_of(case: Case, loss: str) -> Tensor:
    """The sum of the terms, [B], with torch's global generator in another state at every call."""
    torch.rand(3)
    terms: dict[str, Tensor] = getattr(case.objective, loss)(case.nets, case.x, case.batch)
    return torch.stack(list(terms.values())).sum(0).detach()


@every_objective
def test_fake_is_only_called_and_its_weight_knows_the_data(objective: Objective) -> None:
    """While the fake trains it stands behind a wrapper without attributes; sigma_data is the teacher's."""
    weights: tuple[Weight, ...] = ("edm", "eps")
    for weight in weights:
        case = make(changed(objective, fake_weight=weight), Flow())
        nets = replace(case.nets, fake=lambda *arguments, fake=case.nets.fake: fake(*arguments))
        plain = total(case.objective.fake_loss(case.nets, case.x, case.batch))
        assert torch.equal(total(case.objective.fake_loss(nets, case.x, case.batch)), plain)
        nets.teacher.sigma_data = 5.0
        assert torch.equal(total(case.objective.fake_loss(nets, case.x, case.batch)), plain) == (weight != "edm")


@every_objective
def test_every_law_of_times_is_checked_against_the_path(objective: Objective) -> None:
    variants = dict(with_steps(objective))
    assert {"times", "fake_times"} <= set(variants) or not objective.uses_samples
    for path in ALL_PATHS.values():
        objective.check(Denoiser(Tanh(SIZE, 1), path, "x0"))
    for steps in variants.values():
        steps.check(Denoiser(Tanh(SIZE, 1), DiscreteVP(), "x0"))
        with pytest.raises(UserError, match=r"^times: uniform_steps needs a discrete_vp path, the teacher's is Flow"):
            steps.check(Denoiser(Tanh(SIZE, 1), Flow(), "x0"))


def with_steps(objective: Objective) -> Iterator[tuple[str, Objective]]:
    """The objective with each of its laws, and of those of the objective within it, over steps: (field, variant)."""
    for field_ in fields(objective):
        value = getattr(objective, field_.name)
        if isinstance(value, Times) and field_.init:
            yield field_.name, replace(objective, **{field_.name: UniformSteps()})
        if isinstance(value, Objective):
            for name, inner in with_steps(value):
                yield name, replace(objective, **{field_.name: inner})
