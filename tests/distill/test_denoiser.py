"""A teacher says the same whatever its network predicts, and only the network runs in low precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill import EDM, VP, ContinuousVP, Denoiser, DiscreteVP, Path, Random, UserError
from distill.conditions import Condition, ConditionLike
from distill.discriminator import Want
from distill.networks.network import Network
from distill.objectives import Batch, Denoisers, Objective
from distill.paths import beside
from distill.prediction import KINDS, Kind, coefficients, from_x0
from distill.teachers import GaussianMixture
from tests.toys import ALL_PATHS, PAIRLESS, Tanh

SHAPE = (2, 2, 2)


class Wrapped(Network):
    """A teacher behind the interface of a network that predicts `kind`: undoes input scale and network time."""

    def __init__(self, teacher: Denoiser, kind: Kind) -> None:
        super().__init__()
        self.teacher, self.kind, self.null = teacher, kind, teacher.network.null

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        path = self.teacher.path
        logarithmic = {EDM: 250, ContinuousVP: 0.25}.get(type(path))
        one = path.network_time(torch.ones(1, dtype=torch.float64))
        t = time / one if logarithmic is None else (time / logarithmic).exp()
        x_t = x / beside(x, coefficients(self.kind, path, t).input_scale)[0]
        return from_x0(self.kind, path, self.teacher(x_t, t, cond), x_t, t)


def mixture(path: Path, shift: float) -> GaussianMixture:
    means = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(3, *SHAPE) + shift
    return GaussianMixture(path, means, torch.tensor([0.3, 0.5, 0.9], dtype=torch.float64))


@dataclass
class Plain:
    """The fake with a discriminator that looks at its estimate alone."""

    fake: Denoiser

    def __call__(self, x_t: Tensor, t: Tensor, cond: ConditionLike, want: Want = "x0") -> Any:
        x0 = self.fake(x_t, t, cond)
        return {"x0": x0, "logits": x0.mean(1), "both": (x0, x0.mean(1))}[want]


@pytest.mark.parametrize("objective", PAIRLESS.values(), ids=PAIRLESS)
@pytest.mark.parametrize("path", ALL_PATHS.values(), ids=ALL_PATHS)
@pytest.mark.parametrize("labelled", [False, True])
def test_losses_do_not_depend_on_the_prediction_kind(objective: Objective, path: Path, labelled: bool) -> None:
    index = torch.arange(16)
    random = Random.at(0, index)
    x = random.stream("x").normal(*SHAPE, dtype=torch.float64).requires_grad_()
    cond = Condition(labels=index % 3) if labelled else Condition()
    batch = Batch(torch.zeros_like(x), random, cond, real=x.detach())

    def losses(nets: Denoisers) -> tuple[Tensor, Tensor, Tensor]:
        generator, fake = (
            torch.stack(list(loss(nets, x, batch).values())).sum(0)
            for loss in (objective.generator_loss, objective.fake_loss)
        )
        return generator, fake, torch.autograd.grad(generator.sum(), x)[0]

    teacher, fake = mixture(path, 0.0), mixture(path, 0.2)
    frozen = objective.load_frozen() | {"weak_teacher": mixture(path, -0.3)}
    exact = losses(Denoisers(path, teacher, Plain(fake), frozen, objective.new_memory()))
    for kind in KINDS:
        ours_t, ours_f = (Denoiser(Wrapped(net, kind), path, kind) for net in (teacher, fake))  # type: ignore[arg-type]
        nets = Denoisers(path, ours_t, Plain(ours_f), frozen, objective.new_memory())
        for ours, theirs in zip(losses(nets), exact, strict=True):
            assert float((ours - theirs).detach().abs().max() / theirs.detach().abs().max()) < 1e-10, kind


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_network_runs_in_bfloat16(kind: Kind) -> None:
    seen: list[Tensor] = []
    network = nn.Linear(6, 6)

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.extend((inputs[0], output))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, x: Tensor, time: Tensor, cond: ConditionLike) -> Tensor:
            assert time.dtype == torch.float32
            output: Tensor = self.inner(x)
            return output

    network.register_forward_hook(record)
    denoiser = Denoiser(Net(), VP(), kind, autocast_dtype=torch.bfloat16)
    t = torch.tensor([0.01, 0.6, 0.999])
    x_t = Random.at(0, torch.arange(3)).normal(6)
    x0 = denoiser(x_t, t)
    from_x_t, from_output, _ = beside(x_t, *coefficients(kind, VP(), t))
    assert seen[0].dtype == torch.float32  # preconditioned in float32; autocast does the rest inside
    assert seen[1].dtype == torch.bfloat16
    assert x0.dtype == torch.float32
    assert torch.equal(x0, from_x_t * x_t + from_output * seen[1].float())
    assert torch.equal(denoiser(x_t.bfloat16(), t), denoiser(x_t.bfloat16().float(), t))


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_near_pure_noise_x0_is_no_worse_than_the_bfloat16_output(kind: Kind) -> None:
    """At Stable Diffusion's last step, alpha = 0.068, x0 follows from the network's rounded output to 1e-5 of its
    size; the same arithmetic in bfloat16 would be off by more than a tenth."""
    path, t = DiscreteVP(), torch.full((4,), 999.0)
    x, noise = (Random.at(seed, torch.arange(4)).normal(64) for seed in (0, 1))
    x_t, output = path.diffuse(x, t, noise), (noise if kind == "eps" else -x).bfloat16()

    class Net(nn.Module):
        def forward(self, x: Tensor, time: Tensor, cond: ConditionLike) -> Tensor:
            return output

    def x0(dtype: torch.dtype) -> Tensor:
        from_x_t, from_output, _ = beside(x_t.to(dtype), *coefficients(kind, path, t))
        return (from_x_t * x_t.to(dtype) + from_output * output.to(dtype)).double()

    exact = x0(torch.float64)
    ours = Denoiser(Net(), path, kind, autocast_dtype=torch.bfloat16)(x_t, t)
    assert float((ours - exact).abs().max() / exact.abs().max()) < 1e-5
    if kind == "eps":  # what that arithmetic would lose in bfloat16
        assert float((x0(torch.bfloat16) - exact).abs().max()) > 1e3 * float((ours - exact).abs().max())


def test_a_call_without_graph_does_not_poison_the_next() -> None:
    """Autocast caches casted weights; one cached without graph would leave the network without gradient."""
    denoiser = Denoiser(Tanh(4, 0), VP(), "v", autocast_dtype=torch.bfloat16)
    x_t, t = torch.ones(2, 4), torch.full((2,), 0.5)
    with torch.no_grad():
        denoiser(x_t, t)
    denoiser(x_t, t).sum().backward()
    weight = denoiser.get_parameter("network.weight")
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_time_reaches_the_network_in_its_own_convention() -> None:
    times: list[Tensor] = []
    for path in ALL_PATHS.values():
        network = Tanh(4, 0)
        network.register_forward_pre_hook(lambda module, inputs: times.append(inputs[1]))
        t = path.time(torch.tensor([0.5, 3.0], dtype=torch.float64))
        Denoiser(network, path, "v")(torch.ones(2, 4), t)
        assert torch.equal(times[-1], path.network_time(t).float())


def test_precision_follows_x_t() -> None:
    t = torch.tensor([0.5])
    for given, expected in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ):
        denoiser = Denoiser(Tanh(4, 0).to(expected), VP(), "v")
        assert denoiser(torch.ones(1, 4, dtype=given), t).dtype == expected


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(UserError) as error:
        Denoiser(nn.Identity(), VP(), "sample")  # type: ignore[arg-type]
    assert str(error.value) == "prediction: must be one of x0, eps, v, velocity, score, edm, got 'sample'"


def test_the_null_condition_has_the_form_of_a_condition() -> None:
    def null(stated: ConditionLike, cond: ConditionLike) -> Condition:
        network = Network()
        network.null = Condition.of(stated)
        return Denoiser(network, EDM(), "x0").null(cond)

    labels = null(torch.tensor(10), torch.tensor([3, 4]))["labels"]
    assert labels.tolist() == [10, 10] and labels.dtype == torch.int64
    vectors = null({"text": torch.tensor([1.0, 2.0])}, {"text": torch.zeros(3, 2, dtype=torch.float64)})["text"]
    assert vectors.tolist() == [[1.0, 2.0]] * 3 and vectors.dtype == torch.float64
    stated = {"text": torch.ones(4, 2), "size": torch.tensor(7)}
    both = null(stated, {"text": torch.zeros(2, 4, 2), "size": torch.tensor([1, 2])})
    assert torch.equal(both["text"], torch.ones(2, 4, 2)) and both["size"].tolist() == [7, 7]
    assert null(torch.tensor(10), None) == {}
    assert Denoiser(nn.Identity(), EDM(), "x0").network.null is None
