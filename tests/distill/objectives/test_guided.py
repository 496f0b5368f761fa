"""Guided, autoguided and decoupled objectives: SiD-LSG's golden vectors, closed forms on Gaussians, the whole loop."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from distill import EDM, VP, Denoiser, DiscreteVP, Flow, Generator, Path, Random
from distill.conditions import Condition, ConditionLike
from distill.guidance import GuidedDenoiser, classifier_free
from distill.networks.network import Network, null_label
from distill.objectives import Batch, Denoisers, Objective
from distill.objectives.autoguided import Autoguided
from distill.objectives.decoupled import Decoupled
from distill.objectives.diff_instruct import DiffInstruct
from distill.objectives.fgm import FGM
from distill.objectives.guided import Guided
from distill.objectives.sid import SiD
from distill.teachers import GaussianMixture
from distill.times import UniformSteps
from tests.distill.objectives.test_golden import GOLDEN, assert_same
from tests.distill.objectives.test_oracles import TWO, close, coefficients, matrices, own, sid_row
from tests.toys import ALL_PATHS, At, Normal, given, gradients, hermite

Case = dict[str, Tensor]
WEAK = {
    "mu": torch.tensor([0.5, -0.1], dtype=torch.float64),
    "s": torch.tensor([[2.2, -0.3], [-0.3, 1.9]], dtype=torch.float64),
}


class Noise(Network):
    """eps(x, t, c) = tanh(flatten(x) W + c E) (1 + t/1000), the null condition zeros."""

    def __init__(self, weight: Tensor, condition_weight: Tensor) -> None:
        super().__init__()
        self.weight, self.condition_weight = nn.Parameter(weight), condition_weight
        self.null = Condition(text=torch.zeros(len(condition_weight)))

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        hidden = x.flatten(1) @ self.weight + cond["text"] @ self.condition_weight
        return (torch.tanh(hidden) * (1 + time[:, None] / 1000)).reshape(x.shape)


def test_sid_lsg() -> None:
    """One-step sample, guided estimates and both losses, the fake's through its guidance; kappa = 2 everywhere."""
    golden = load_file(GOLDEN / "sid_lsg.safetensors")
    signal = golden["alphas_cumprod"].double()
    path = DiscreteVP(betas=tuple((1 - signal / torch.cat([torch.ones(1), signal[:-1]])).tolist()))
    networks = [Noise(golden[f"{who}_weight"], golden["condition_weight"]) for who in ("generator", "teacher", "fake")]
    generator, teacher, fake = (Denoiser(network, path, "eps") for network in networks)
    cond, t = Condition(text=golden["condition"]), golden["timestep"].double()
    assert_same(Generator(generator, t=625)(golden["z"], cond), golden["x0"])

    x = golden["x0"].clone().requires_grad_()
    x_t = path.diffuse(x, t, golden["noise"])
    for network, name in ((teacher, "teacher"), (fake, "fake")):
        assert_same(classifier_free(network, 2.0, teacher.null)(x_t, t, cond), golden[f"{name}_x0"])

    steps = UniformSteps()
    inner = SiD(alpha=1.0, scale=1.0, times=steps, fake_times=steps, fake_weight="eps")
    objective = Guided(objective=inner, teacher_cfg=2, fake_cfg=2, fake_training_cfg=2, condition_dropout=0)
    nets = Denoisers(path, teacher, fake)
    drawn = Batch(golden["z"], given(golden["noise"], (t - 20 + 0.5) / 960), cond)
    term = objective.generator_loss(nets, x, drawn)["sid"]
    assert_same(term, golden["loss_per_pixel"])
    assert_same(torch.autograd.grad(term.sum(), x)[0], golden["grad_x0_of_sum"])
    term = objective.fake_loss(nets, x, drawn)["denoising"]
    assert_same(term, golden["fake_loss_per_pixel"])
    assert_same(torch.autograd.grad(term.sum(), networks[2].weight)[0], golden["grad_fake_weight"])


class Either(Denoiser):
    """One of two denoisers for the whole batch: `weak` under the null condition 1."""

    def __init__(self, strong: Denoiser, weak: Denoiser) -> None:
        super().__init__(Network(), strong.path, "x0")
        self.network.null = null_label(1)
        self.strong, self.weak = strong, weak

    def forward(self, x_t: Tensor, t: Tensor, cond: ConditionLike = None) -> Tensor:
        chosen: Tensor = (self.weak if unconditional(cond) else self.strong)(x_t, t)
        return chosen


def unconditional(cond: ConditionLike) -> bool:
    """Return whether all samples have the null condition of `Either`."""
    return bool(Condition.of(cond)["labels"].all())


def labels_zero(count: int) -> Condition:
    """Return the condition 0 of `Either` for `count` samples."""
    return Condition(labels=torch.zeros(count, dtype=torch.int64))


def guided_gradients(path: Path, objective: Objective) -> tuple[Tensor, Tensor]:
    """Return d/db [2] and d/dM [2, 2] of the expected loss. The teacher is N(TWO), its null condition N(WEAK)."""
    nodes, weights = hermite(4)
    z, noise = nodes[:, :2], nodes[:, 2:]
    weak, fake = Normal(path, WEAK["mu"], WEAK["s"]), Normal(path, TWO["b"], TWO["m"] @ TWO["m"].T)
    nets = Denoisers(path, Either(Normal(path, TWO["mu"], TWO["s"]), weak), fake, {"weak_teacher": weak})
    cond = labels_zero(len(z))

    def expectation(b: Tensor, m: Tensor) -> Tensor:
        return (weights * own(objective, nets, z @ m.T + b, Batch(z, given(noise), cond))).sum()

    d_b, d_m = gradients(expectation, TWO["b"], TWO["m"])
    return d_b, d_m


def as_one(alpha: Tensor, sigma: Tensor, scale: float) -> Case:
    """The Gaussian whose denoiser at this noise is the guided one: C^-1 and C^-1 mu of x_t's law are guided each."""
    eye = torch.eye(2).double()
    strong, weak = (torch.linalg.inv(alpha**2 * one["s"] + sigma**2 * eye) for one in (TWO, WEAK))
    precision = weak + scale * (strong - weak)
    shift = weak @ WEAK["mu"] + scale * (strong @ TWO["mu"] - weak @ WEAK["mu"])
    covariance = (torch.linalg.inv(precision) - sigma**2 * eye) / alpha**2  # perhaps of no distribution
    return TWO | {"mu": torch.linalg.solve(precision, shift), "s": covariance}


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.0, 2.5])
@pytest.mark.parametrize("ratio", [0.1, 0.8, 5.0])
@pytest.mark.parametrize("path", ALL_PATHS.values(), ids=ALL_PATHS)
def test_a_guided_teacher(path: Path, ratio: float, scale: float) -> None:
    """The rows of Diff-Instruct and SiD(1/2) with the guided denoiser's coefficients, by every way to guide."""
    alpha, sigma, jacobian = coefficients(path, ratio)
    case = as_one(alpha, sigma, scale)
    teacher, _, q, m = matrices(alpha, sigma, case)
    direct, exact = DiffInstruct(times=At(ratio)), (sigma**2 * teacher @ m, sigma**2 * q @ case["m"])
    alone = {"teacher_cfg": scale, "fake_cfg": 1.0, "fake_training_cfg": 1.0}
    for objective in (
        Guided(objective=direct, **alone),
        Decoupled(objective=direct, teacher_cfg=scale, guidance_times=At(ratio)),
        Autoguided(objective=direct, teacher_autoguidance=scale, weak_teacher=""),
    ):
        assert close(guided_gradients(path, objective), exact), objective
    through = FGM(first=1.0, times=At(ratio))
    exact = tuple(2 * (jacobian / sigma) ** 2 * row for row in sid_row(alpha, sigma, case, 0.5))
    for objective in (
        Guided(objective=through, **alone),
        Autoguided(objective=through, teacher_autoguidance=scale, weak_teacher=""),
    ):
        assert close(guided_gradients(path, objective), exact), objective


def test_decoupled_guidance_under_dmds_normaliser() -> None:
    """Its own weight is 1/mean|x - T| of the guided teacher, and its own law and stream of times; no graph in it."""
    random, x = Random.at(0, torch.arange(6)), Random.at(1, torch.arange(6)).normal(2, dtype=torch.float64)
    weak, strong = (Normal(EDM(), one["mu"], one["s"]) for one in (WEAK, TWO))
    nets = Denoisers(EDM(), Either(strong, weak), weak)
    batch = Batch(x, random, labels_zero(6))
    plain, weighted = (
        Decoupled(objective=DiffInstruct(), teacher_cfg=3.0, guidance_times=At(2.0), guidance_weight=weight)
        for weight in ("none", "l1")
    )
    x_t, t, _ = EDM().draw(x, At(2.0), random.stream("guidance"))
    gap = strong(x_t, t) - weak(x_t, t)
    terms = plain.generator_loss(nets, x, batch)
    assert torch.allclose(terms["guidance"], -2 * (gap * x).sum(1), rtol=1e-12)
    normaliser = 1 / (x - (weak(x_t, t) + 3 * gap)).abs().mean(1)
    assert torch.allclose(
        weighted.generator_loss(nets, x, batch)["guidance"], normaliser * terms["guidance"], rtol=1e-12
    )
    seen: list[bool] = []
    nets.teacher.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].requires_grad))
    x = x.requires_grad_()
    Decoupled(objective=SiD()).generator_loss(nets, x, batch)
    assert seen == [True, False, False]
    matching = DiffInstruct().generator_loss(nets, x, batch)
    assert torch.equal(terms["diff_instruct"], matching["diff_instruct"])


@pytest.mark.parametrize(("training", "cfg"), [(1.5, 1.5), (0.5, 1.0), (1.0, 2.0), (-1.0, -1.0)])
def test_a_fake_trained_through_its_guidance(training: float, cfg: float) -> None:
    """Its optimum is D_u + (E - D_u)/training: guided at `cfg`, that is E[x | x_t] guided at cfg/training."""
    path = Flow()
    nodes, weights = hermite(4)
    z, noise = nodes[:, :2], nodes[:, 2:]
    x = z @ TWO["m"].T + TWO["b"]
    mean, weak = Normal(path, TWO["b"], TWO["m"] @ TWO["m"].T), Normal(path, WEAK["mu"], WEAK["s"])
    best = GuidedDenoiser(mean, weak, 1 / training)
    cond = labels_zero(len(z))
    objective = Guided(objective=FGM(fake_times=At(0.8)), fake_training_cfg=training, condition_dropout=0.0)

    def expectation(offset: Tensor, slope: Tensor) -> Tensor:
        def fake(x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
            return weak(x_t, t) if unconditional(cond) else best(x_t, t) + offset + x_t @ slope

        nets = Denoisers(path, Either(mean, weak), fake)
        (term,) = objective.fake_loss(nets, x, Batch(z, given(noise), cond)).values()
        return (weights * term).sum()

    for gradient in gradients(expectation, torch.zeros_like(TWO["b"]), torch.zeros_like(TWO["m"])):
        assert float(gradient.abs().max()) < 1e-9
    t = torch.full((len(z),), 0.4, dtype=torch.float64)
    asked = GuidedDenoiser(best, weak, cfg)(z, t)
    assert torch.allclose(asked, GuidedDenoiser(mean, weak, cfg / training)(z, t), rtol=1e-9)


def test_the_fakes_conditions_are_dropped_where_its_null_is_needed() -> None:
    """They are dropped with probability condition_dropout, and never where the fake is guided nowhere."""
    cond = labels_zero(1000)
    x = torch.zeros(1000, 2, dtype=torch.float64)
    weak = Normal(EDM(), WEAK["mu"], WEAK["s"])
    for scales, share in (((1.0, 1.0), 0.0), ((1.0, 2.0), 0.3), ((2.0, 1.0), 0.3)):
        seen: list[Tensor] = []

        def fake(x_t: Tensor, t: Tensor, cond: Condition, seen: list[Tensor] = seen) -> Tensor:
            seen.append(cond["labels"])
            return x_t

        objective = Guided(objective=SiD(), fake_cfg=scales[0], fake_training_cfg=scales[1], condition_dropout=0.3)
        nets = Denoisers(EDM(), Either(weak, weak), fake)
        objective.fake_loss(nets, x, Batch(x, Random.at(0, torch.arange(1000)), cond))
        assert abs(float(seen[0].double().mean()) - share) < 0.05
        assert [bool(one.all()) for one in seen[1:]] == [True] * (scales[1] != 1)


@pytest.mark.parametrize("path", [EDM(), VP(), Flow()], ids=["edm", "vp", "flow"])
def test_equal_guidance_of_exact_estimates_reaches_the_teacher(path: Path) -> None:
    """Two classes, teacher and fake both guided at 1.5: where the laws agree, so do the guided estimates."""
    steps, shape = 200, (1, 4, 4)
    means, stds = torch.tensor([-0.7, 0.4]).double(), torch.tensor([0.5, 0.9]).double()

    def mixture(means: Tensor, stds: Tensor) -> GaussianMixture:
        return GaussianMixture(path, means.detach()[:, None, None, None].expand(2, *shape), stds.detach().abs())

    objective = Guided(objective=SiD(alpha=1.0), teacher_cfg=1.5, fake_cfg=1.5, fake_training_cfg=1.0)
    a, b = torch.tensor([0.8, 0.6]).double().requires_grad_(), torch.tensor([0.1, 0.2]).double().requires_grad_()
    optimizer = torch.optim.Adam([a, b], lr=0.05, betas=(0.0, 0.9))
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for step in range(steps):
        index = torch.arange(32) + step * 32
        random, labels = Random.at(0, index), index % 2
        z = random.stream("latent").normal(*shape, dtype=torch.float64)
        x = a[labels, None, None, None] * z + b[labels, None, None, None]
        nets = Denoisers(path, mixture(means, stds), mixture(b, a))
        (term,) = objective.generator_loss(nets, x, Batch(z, random, Condition(labels=labels))).values()
        optimizer.zero_grad()
        term.mean().backward()
        optimizer.step()
        decay.step()
    assert a.tolist() == pytest.approx(stds.tolist(), abs=1e-3)
    assert b.tolist() == pytest.approx(means.tolist(), abs=1e-3)
