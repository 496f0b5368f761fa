"""Expected gradients on Gaussians against closed forms.

The generator is x = M z + b, the teacher N(mu, S), the fake exact for the generator as it stands and held constant.
Every loss without a per-sample normaliser is then a polynomial in (z, noise), of degree 4 at most, so that four
Gauss-Hermite nodes a dimension give its expectation exactly: what is compared here is algebra, to 1e-9.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, get_args

import pytest
import torch
from torch import Tensor

from distill import EDM, Flow, Path
from distill.discriminator import adversarial_loss
from distill.loss_weights import GeneratorWeight, generator_weight
from distill.objectives import Batch, Denoisers, Objective
from distill.objectives.adversarial import logits_at
from distill.objectives.diff_instruct import DiffInstruct, diff_instruct_loss
from distill.objectives.f_distill import DIVERGENCE_WEIGHTS
from distill.objectives.fgm import FGM
from distill.objectives.realuid import RealUID
from distill.objectives.rewarded import Rewarded
from distill.objectives.score_mismatching import ScoreMismatching
from distill.objectives.sid import SiD
from distill.objectives.sim import SIM, Distance, Exponential, Huber, Power, PseudoHuber, SquaredL2
from tests.toys import ALL_PATHS, PAIRLESS, At, ExactCritic, Normal, given, gradients, hermite

KAPPAS = (-0.5, 0.0, 0.5, 1.0, 1.2, 2.0)
RATIOS = (0.1, 0.8, 5.0)
SIM_L2 = SIM(distance=SquaredL2())
Loss = Callable[[Objective, Denoisers, Tensor, Batch], Tensor]

ONE = {
    "m": torch.tensor([[0.7]], dtype=torch.float64),
    "b": torch.tensor([0.4], dtype=torch.float64),
    "mu": torch.tensor([-0.3], dtype=torch.float64),
    "s": torch.tensor([[1.69]], dtype=torch.float64),
}
TWO = {
    "m": torch.tensor([[0.7, -0.4], [0.1, 1.1]], dtype=torch.float64),
    "b": torch.tensor([0.4, -1.0], dtype=torch.float64),
    "mu": torch.tensor([-0.3, 0.2], dtype=torch.float64),
    "s": torch.tensor([[1.7, 0.5], [0.5, 0.6]], dtype=torch.float64),
}


def own(objective: Objective, nets: Denoisers, x: Tensor, batch: Batch) -> Tensor:
    """The sum of the objective's terms [B]."""
    return torch.stack(list(objective.generator_loss(nets, x, batch).values())).sum(0)


def bare_sid(kappa: float, ratio: float) -> SiD:
    """SiD at one noise level, without the normaliser, which is no polynomial, and without scale."""
    return SiD(alpha=kappa, times=At(ratio), weight="none", scale=1.0)


def dense(dimensions: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the standard normal on an even grid: for what is no polynomial, exact where it is smooth."""
    x = torch.linspace(-9, 9, 361, dtype=torch.float64)
    grid = torch.cartesian_prod(*[x] * dimensions).reshape(-1, dimensions)
    weights = (-(grid**2).sum(1) / 2).exp()
    return grid, weights / weights.sum()


def expected_gradients(
    path: Path,
    objective: Objective,
    loss: Loss,
    case: dict[str, Tensor],
    grid: Callable[[int], tuple[Tensor, Tensor]] = hermite,
) -> tuple[Tensor, Tensor]:
    """d/db [D] and d/dM [D, D] of the expected loss."""
    size = len(case["b"])
    nodes, weights = grid(2 * size)
    z, noise = nodes[:, :size], nodes[:, size:]
    m, b = case["m"], case["b"]
    teacher, fake = Normal(path, case["mu"], case["s"]), Normal(path, b, m @ m.T)
    frozen, memory = {"weak_teacher": teacher}, objective.new_memory()
    nets = Denoisers(path, teacher, ExactCritic(teacher, fake), frozen, memory, images=10**9)

    def expectation(b: Tensor, m: Tensor) -> Tensor:
        return (weights * loss(objective, nets, z @ m.T + b, Batch(z, given(noise)))).sum()

    d_b, d_m = gradients(expectation, b, m)
    return d_b, d_m


def coefficients(path: Path, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """alpha, sigma and |J| = |alpha' sigma - alpha sigma'| where the path has this noise-to-signal ratio."""
    t = path.time(torch.tensor(ratio, dtype=torch.float64))
    (alpha_dot, sigma_dot), alpha, sigma = path.derivatives(t), path.alpha(t), path.sigma(t)
    return alpha, sigma, alpha_dot * sigma - alpha * sigma_dot


def close(ours: tuple[Tensor, ...], exact: tuple[Tensor, ...], tolerance: float = 1e-9) -> bool:
    return all(float((a - b).norm() / b.norm()) < tolerance for a, b in zip(ours, exact, strict=True))


def matrices(alpha: Tensor, sigma: Tensor, case: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """C_T^-1, C_F^-1, their difference Q, and the difference of the means."""
    eye = torch.eye(len(case["b"])).double()
    teacher = torch.linalg.inv(alpha**2 * case["s"] + sigma**2 * eye)
    fake = torch.linalg.inv(alpha**2 * case["m"] @ case["m"].T + sigma**2 * eye)
    return teacher, fake, teacher - fake, case["b"] - case["mu"]


def sid_row(alpha: Tensor, sigma: Tensor, case: dict[str, Tensor], kappa: float) -> tuple[Tensor, Tensor]:
    """SiD(kappa) in D-space."""
    teacher, fake, q, m = matrices(alpha, sigma, case)
    d_b = (2 * (1 - kappa) * q + fake) @ teacher @ m
    d_m = (2 * (1 - kappa) * q @ q + q @ fake + fake @ q) @ case["m"]
    return sigma**4 * d_b, sigma**4 * d_m


every_setting = [
    pytest.param(path, ratio, case, id=f"{name}-{ratio}-{len(case['b'])}d")
    for name, path in ALL_PATHS.items()
    for ratio in RATIOS
    for case in (ONE, TWO)
]


@pytest.mark.parametrize(("path", "ratio", "case"), every_setting)
def test_diff_instruct(path: Path, ratio: float, case: dict[str, Tensor]) -> None:
    alpha, sigma, _ = coefficients(path, ratio)
    teacher, _, q, m = matrices(alpha, sigma, case)
    exact = (sigma**2 * teacher @ m, sigma**2 * q @ case["m"])
    assert close(expected_gradients(path, DiffInstruct(times=At(ratio)), own, case), exact)


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize(("path", "ratio", "case"), every_setting)
def test_sid(path: Path, ratio: float, case: dict[str, Tensor], kappa: float) -> None:
    alpha, sigma, _ = coefficients(path, ratio)
    ours = expected_gradients(path, bare_sid(kappa, ratio), own, case)
    assert close(ours, sid_row(alpha, sigma, case, kappa))


@pytest.mark.parametrize("name", get_args(GeneratorWeight))
@pytest.mark.parametrize("path", ALL_PATHS.values(), ids=ALL_PATHS)
def test_weights_by_noise(path: Path, name: GeneratorWeight) -> None:
    alpha, sigma, _ = coefficients(path, 0.8)
    weight = generator_weight(name, sigma / alpha)
    for objective, factor in ((SiD(times=At(0.8), weight=name), 100), (SIM_L2, 2)):
        ours = expected_gradients(path, replace(objective, times=At(0.8), weight=name), own, TWO)
        kappa = objective.alpha if isinstance(objective, SiD) else 1.0
        assert close(ours, tuple(factor * weight * row for row in sid_row(alpha, sigma, TWO, kappa)))


@pytest.mark.parametrize(("path", "ratio", "case"), every_setting)
def test_sim_with_the_squared_distance(path: Path, ratio: float, case: dict[str, Tensor]) -> None:
    """Twice SiD(1), in the unit of its space."""
    alpha, sigma, _ = coefficients(path, ratio)
    row = sid_row(alpha, sigma, case, 1.0)
    for space, unit in (("x0", 1.0), ("score", alpha / sigma**2)):
        objective = replace(SIM_L2, space=space, times=At(ratio))
        assert close(expected_gradients(path, objective, own, case), tuple(2 * unit**2 * one for one in row)), space


DERIVATIVES: list[tuple[Distance, Callable[[Tensor], Tensor], float]] = [
    (PseudoHuber(c=0.3), lambda y: y / (y**2 + 0.09).sqrt(), 1e-9),
    (Huber(c=0.3), lambda y: y.clamp(-0.3, 0.3), 1e-2),  # has a kink
    (Power(p=4), lambda y: 4 * y**3, 1e-9),
    (Exponential(c=4.0), lambda y: 2 * y * (y**2 / 16).exp(), 1e-9),
]
"""Distances, d'(y) of one element written out, and how well the grid can do."""


@pytest.mark.parametrize("space", ["x0", "score"])
@pytest.mark.parametrize(
    ("distance", "derivative", "tolerance"), DERIVATIVES, ids=["pseudo_huber", "huber", "power", "exponential"]
)
@pytest.mark.parametrize("path", ALL_PATHS.values(), ids=ALL_PATHS)
def test_sim(
    path: Path,
    distance: Distance,
    derivative: Callable[[Tensor], Tensor],
    tolerance: float,
    space: Literal["x0", "score"],
) -> None:
    """The divergence's own gradient, with the law of x_t held: only the fake's score moves with the generator."""
    alpha, sigma, _ = coefficients(path, 0.8)
    unit = alpha / sigma**2 if space == "score" else torch.ones(())
    a, m = ONE["m"][0, 0], (ONE["b"] - ONE["mu"])[0]
    big_a, big_b = alpha**2 * ONE["s"][0, 0] + sigma**2, alpha**2 * a**2 + sigma**2
    nodes, weights = dense(1)
    n = nodes[:, 0]
    delta = alpha * m / big_a + big_b.sqrt() * (1 / big_a - 1 / big_b) * n  # s_F - s_T on the generator's law
    rate = derivative(delta * sigma**2 / alpha * unit) * sigma**2 / alpha * unit
    d_b = alpha / big_b * (weights * rate).sum()
    d_a = 2 * alpha**2 * a / big_b**2 * (weights * rate * big_b.sqrt() * n).sum()
    ours = expected_gradients(path, SIM(distance=distance, space=space, times=At(0.8)), own, ONE, grid=dense)
    assert close(ours, (d_b.reshape(1), d_a.reshape(1, 1)), tolerance)


@pytest.mark.parametrize(("first", "kappa"), [(1.0, 0.5), (0.0, 1.0)])
@pytest.mark.parametrize(("path", "ratio", "case"), every_setting)
def test_fgm(path: Path, ratio: float, case: dict[str, Tensor], first: float, kappa: float) -> None:
    alpha, sigma, jacobian = coefficients(path, ratio)
    exact = tuple(2 * (jacobian / sigma) ** 2 * row for row in sid_row(alpha, sigma, case, kappa))
    assert close(expected_gradients(path, FGM(first=first, times=At(ratio)), own, case), exact)


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.92, 0.94), (0.98, 0.96)])
@pytest.mark.parametrize(("path", "ratio", "case"), every_setting)
def test_realuid(path: Path, ratio: float, case: dict[str, Tensor], a: float, b: float) -> None:
    """a FGM (1, 1) + 2 (a - b) <u_T - u_F, u(x_t|x)>, where u_T - u_F = P x_t + q."""
    t = path.time(torch.tensor(ratio, dtype=torch.float64))
    alpha, sigma, jacobian = coefficients(path, ratio)
    teacher, fake, _, _ = matrices(alpha, sigma, case)
    covariance, eye = case["m"] @ case["m"].T, torch.eye(len(case["b"])).double()
    p = jacobian / sigma * alpha * (case["s"] @ teacher - covariance @ fake)
    means = (eye - alpha**2 * case["s"] @ teacher) @ case["mu"] - (eye - alpha**2 * covariance @ fake) @ case["b"]
    alpha_dot = path.derivatives(t)[0]
    cross_b = alpha * alpha_dot * (p + p.T) @ case["b"] + alpha_dot * jacobian / sigma * means
    cross_m = alpha * alpha_dot * (p + p.T) @ case["m"]
    fisher_b, fisher_m = (2 * (jacobian / sigma) ** 2 * row for row in sid_row(alpha, sigma, case, 0.5))
    exact = (a * fisher_b + 2 * (a - b) * cross_b, a * fisher_m + 2 * (a - b) * cross_m)
    assert close(expected_gradients(path, RealUID(a=a, b=b, times=At(ratio)), own, case), exact)


@pytest.mark.parametrize(("path", "ratio", "case"), every_setting)
def test_score_mismatching(path: Path, ratio: float, case: dict[str, Tensor]) -> None:
    """Against an exact denoiser the mean stays and the spread falls: noise is easier to find in narrow samples."""
    alpha, sigma, _ = coefficients(path, ratio)
    _, fake, _, _ = matrices(alpha, sigma, case)
    d_b, d_m = expected_gradients(path, ScoreMismatching(times=At(ratio)), own, case)
    assert float(d_b.norm()) < 1e-9
    assert close((d_m,), (alpha**2 * sigma**2 * fake @ fake @ case["m"],))


def scalar_rows(alpha: Tensor, sigma: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """The table of 1-D gradients (d/db, d/da), each written out on its own."""
    a, m, s2 = ONE["m"], ONE["b"] - ONE["mu"], ONE["s"]
    big_a, big_b = alpha**2 * s2 + sigma**2, alpha**2 * a**2 + sigma**2
    d, squares = 1 / big_a - 1 / big_b, 1 / big_a**2 - 1 / big_b**2
    return {
        "diff_instruct": (sigma**2 * m / big_a, sigma**2 * a * d),
        "fisher": (sigma**4 * m / big_a**2, sigma**4 * a * squares),
        "sim_l2": (sigma**4 * m / (big_a * big_b), 2 * sigma**4 * a * d / big_b),
        "fgm_both": (2 * sigma**2 * m / big_a**2, 2 * sigma**2 * a * squares),
        "fgm_second": (2 * sigma**2 * m / (big_a * big_b), 4 * sigma**2 * a * d / big_b),
    }


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("path", ALL_PATHS.values(), ids=ALL_PATHS)
def test_scalar_table(path: Path, ratio: float) -> None:
    alpha, sigma, jacobian = coefficients(path, ratio)
    at = At(ratio)
    for name, objective, loss, factor in (
        ("diff_instruct", DiffInstruct(times=at), own, 1),
        ("fisher", bare_sid(0.5, ratio), own, 1),
        ("sim_l2", bare_sid(1.0, ratio), own, 1),
        ("fgm_both", FGM(first=1.0, times=at), own, jacobian**2),
        ("fgm_second", FGM(times=at), own, jacobian**2),
    ):
        d_b, d_a = scalar_rows(alpha, sigma)[name]
        exact = (factor * d_b.reshape(1), factor * d_a.reshape(1, 1))
        assert close(expected_gradients(path, objective, loss, ONE), exact), name


def test_fisher_is_the_total_derivative_of_its_divergence() -> None:
    """SiD(1/2) differentiates E|s_F - s_T|^2 with the law of x_t and s_F both moving."""
    sigma = torch.tensor(0.8, dtype=torch.float64)

    def divergence(b: Tensor, a: Tensor) -> Tensor:
        big_a, big_b = ONE["s"] + sigma**2, a**2 + sigma**2
        return ((b - ONE["mu"]) ** 2 / big_a**2 + big_b * (1 / big_a - 1 / big_b) ** 2).sum()

    exact = tuple(sigma**4 / 2 * row for row in gradients(divergence, ONE["b"], ONE["m"]))
    assert close(expected_gradients(EDM(), bare_sid(0.5, 0.8), own, ONE), exact)


def test_numbers_computed_elsewhere() -> None:
    """(d/da, d/db) at a = .7, b = .4, mu = -.3, s = 1.3, sigma = .8, in score units, to their five digits."""
    sigma = 0.8
    for kappa, d_a, d_b in ((0.5, -0.83853, 0.25788), (1.0, -1.12934, 0.53173), (1.2, -1.24567, 0.64127)):
        ours_b, ours_a = expected_gradients(EDM(), bare_sid(kappa, sigma), own, ONE)
        assert (2 / sigma**4 * ours_a).item() == pytest.approx(d_a, abs=6e-6)
        assert (2 / sigma**4 * ours_b).item() == pytest.approx(d_b, abs=6e-6)
    for distance, d_a, d_b in ((SquaredL2(), -1.12934, 0.53173), (PseudoHuber(c=0.3), -0.66446, 0.34465)):
        sim = SIM(distance=distance, space="score", times=At(sigma))
        ours_b, ours_a = expected_gradients(EDM(), sim, own, ONE, grid=dense)
        assert ours_a.item() == pytest.approx(d_a, abs=6e-6)
        assert ours_b.item() == pytest.approx(d_b, abs=6e-6)
    ours_b, ours_a = expected_gradients(EDM(), DiffInstruct(times=At(sigma)), own, ONE)
    assert (ours_a / sigma**2).item() == pytest.approx(-0.31904, abs=6e-6)
    assert (ours_b / sigma**2).item() == pytest.approx(0.30043, abs=6e-6)


F_DIVERGENCES = {
    "reverse_kl": (-0.31904, 0.30043),
    "forward_kl": (-0.92646, 0.61947),
    "js": (-0.19209, 0.16898),
    "softened_reverse_kl": (-0.12695, 0.13145),
    "squared_hellinger": (-0.11381, 0.09456),
    "jeffreys": (-1.24550, 0.91990),
    "neyman": (-0.49072, 0.53158),
}
"""(d/da, d/db) computed elsewhere, as below."""


def ratio_weighted(divergence: str) -> Loss:
    """h(r) -<gap, x> with the exact ratio, held constant."""

    def loss(objective: Objective, nets: Denoisers, x: Tensor, batch: Batch) -> Tensor:
        s = objective.estimate(nets, x, batch, At(0.8), logits=True)
        assert s.logits is not None
        h = DIVERGENCE_WEIGHTS[divergence](s.logits[:, 0].exp())  # type: ignore[index]
        return h.detach() * diff_instruct_loss(x, s.teacher, s.fake)

    return loss


def adversarial(objective: Objective, nets: Denoisers, x: Tensor, batch: Batch) -> Tensor:
    """The generator's adversarial term alone, in units in which its gradient is that of its divergence's row."""
    return 0.8**2 * adversarial_loss(logits_at(nets, x, batch, At(0.8)))


@pytest.mark.parametrize("divergence", [*DIVERGENCE_WEIGHTS, "adversarial"])
def test_f_divergences(divergence: str) -> None:
    """The non-saturating adversarial term under the best discriminator is the softened reverse KL divergence."""
    loss = adversarial if divergence == "adversarial" else ratio_weighted(divergence)
    ours_b, ours_a = expected_gradients(EDM(), DiffInstruct(), loss, ONE, dense)
    d_a, d_b = F_DIVERGENCES["softened_reverse_kl" if divergence == "adversarial" else divergence]
    assert (ours_a / 0.8**2).item() == pytest.approx(d_a, abs=6e-6)
    assert (ours_b / 0.8**2).item() == pytest.approx(d_b, abs=6e-6)


@pytest.mark.parametrize("kappa", [1.2, 1.5])
def test_sid_above_one_points_away_when_the_generator_is_much_wider(kappa: float) -> None:
    """d/db reverses where B/A passes (2k-1)/(2k-2), d/da where it passes k/(k-1)."""
    sigma, s2 = 0.1, 0.01
    for which, threshold in ((0, (2 * kappa - 1) / (2 * kappa - 2)), (1, kappa / (kappa - 1))):
        for ratio, sign in ((0.99 * threshold, 1), (1.01 * threshold, -1)):
            a = (ratio * (s2 + sigma**2) - sigma**2) ** 0.5
            case = ONE | {"m": torch.tensor([[a]], dtype=torch.float64), "s": torch.tensor([[s2]], dtype=torch.float64)}
            grads = expected_gradients(EDM(), bare_sid(kappa, sigma), own, case)
            assert float(grads[which].sign()) == sign  # b > mu and a > s: descent should lower both


@pytest.mark.parametrize("objective", PAIRLESS.values(), ids=PAIRLESS)
@pytest.mark.parametrize("path", ALL_PATHS.values(), ids=ALL_PATHS)
def test_the_teacher_itself_is_a_fixed_point(path: Path, objective: Objective) -> None:
    """Generator law = teacher law and an exact fake, though the map from z is another square root of S."""
    if isinstance(objective, ScoreMismatching):
        pytest.skip("the teacher has no part in it")
    if isinstance(objective, Rewarded):
        pytest.skip("its reward pulls the law away from the teacher's")
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, 0.9], [-0.9, 0.0]], dtype=torch.float64))
    there = TWO | {"b": TWO["mu"], "m": torch.linalg.cholesky(TWO["s"]) @ turn}
    away = expected_gradients(path, objective, own, TWO)
    for grad, scale in zip(expected_gradients(path, objective, own, there), away, strict=True):
        assert float(grad.norm()) < 1e-9 * float(scale.norm())


def test_flow_velocity_of_the_normal() -> None:
    """The denoiser of these tests, in velocity: u_T = [(sigma - alpha s^2) x - sigma mu (alpha + sigma)] / A."""
    path, t, x = (
        Flow(),
        torch.tensor([0.3, 0.9], dtype=torch.float64),
        torch.tensor([[0.5], [-2.0]], dtype=torch.float64),
    )
    alpha, sigma, s2, mu = 1 - t, t, ONE["s"][0], ONE["mu"]
    exact = ((sigma - alpha * s2) * x[:, 0] - sigma * mu * (alpha + sigma)) / (alpha**2 * s2 + sigma**2)
    velocity = (x - Normal(path, ONE["mu"], ONE["s"])(x, t)) / t[:, None]
    assert torch.allclose(velocity[:, 0], exact, rtol=1e-12)
