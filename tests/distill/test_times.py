"""Laws of times are quantile functions: monotone, and right at their anchors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill import EDM, VP, DiscreteVP, Flow, Path, UserError
from distill.times import TIMES, Karras, LogNormal, Times, UniformFlow, UniformSteps
from tests.toys import ALL_PATHS

INNER = torch.linspace(1e-4, 1 - 1e-4, 2001, dtype=torch.float64)
EXTREMES = torch.tensor([2.0**-53, 1 - 2.0**-53], dtype=torch.float64)


def nsr(times: Times, *u: float, path: Path | None = None) -> list[float]:
    return times.nsr(torch.tensor(u, dtype=torch.float64), path or EDM()).tolist()


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("path", ALL_PATHS.values(), ids=ALL_PATHS)
def test_quantiles_are_monotone_positive_and_finite(name: str, path: Path) -> None:
    times = TIMES[name]()
    if name == "uniform_steps" and not isinstance(path, DiscreteVP):
        with pytest.raises(UserError, match=r"^times: uniform_steps needs a discrete_vp path, the teacher's is "):
            times.check(path)
        return
    times.check(path)
    u: Tensor = torch.cat([EXTREMES[:1], INNER, EXTREMES[1:]])
    quantiles = times.nsr(u, path)
    assert quantiles.dtype == torch.float64
    assert bool((quantiles.diff() >= 0).all())
    assert bool((quantiles > 0).all())
    assert bool(quantiles.isfinite().all())
    t = path.time(quantiles)
    assert bool(t.isfinite().all())
    assert bool((path.sigma(t) > 0).all())


def test_karras_anchors() -> None:
    assert nsr(Karras(), 0.2, 0.5, 0.8) == pytest.approx([0.085, 2.515, 24.41], rel=2e-3)
    assert nsr(Karras(upto=0.8), 0.25, 0.625, 1.0) == pytest.approx([0.085, 2.515, 24.41], rel=2e-3)
    assert nsr(Karras(0.1, 10.0, rho=1.0), 0.5) == pytest.approx([5.05])


def test_lognormal_moments_and_quantiles() -> None:
    times = LogNormal(-0.4, 1.0)
    assert nsr(times, 0.5, 0.8413447) == pytest.approx([0.67032, 1.82212], rel=1e-5)
    logs = times.nsr((torch.arange(100_000).double() + 0.5) / 100_000, EDM()).log()
    assert logs.mean().item() == pytest.approx(-0.4, abs=1e-6)
    assert logs.std().item() == pytest.approx(1.0, abs=1e-3)


def test_lognormal_is_the_logit_normal_law_of_flow_time() -> None:
    t = Flow().time(LogNormal(0.3, 0.9).nsr(INNER, Flow()))
    assert torch.allclose(t, (0.3 + 0.9 * torch.special.ndtri(INNER)).sigmoid(), rtol=1e-12)


@pytest.mark.parametrize("path", [EDM(), VP(), Flow()], ids=str)
def test_uniform_flow_is_uniform_in_flow_time_whatever_the_path(path: Path) -> None:
    ratio = path.nsr(path.time(UniformFlow(0.02, 0.98).nsr(INNER, path)))
    assert torch.allclose(Flow().time(ratio), 0.02 + 0.96 * INNER, rtol=1e-9)


def test_uniform_steps_gives_every_step_the_same_share() -> None:
    path = DiscreteVP()
    for first, last in ((20, 979), (0, 999), (7, 7), (0, 511), (1, 600)):
        count = last - first + 1
        u = (torch.arange(count * 4).double() + 0.5) / (count * 4)
        steps = path.time(UniformSteps(first, last).nsr(u, path))
        assert torch.equal(steps, torch.arange(first, last + 1).double().repeat_interleave(4))
        ends = path.time(UniformSteps(first, last).nsr(EXTREMES, path))
        assert ends.tolist() == [first, last]
    assert path.nsr(torch.tensor([20.0, 979.0])).tolist() == pytest.approx([0.138, 13.0], abs=0.05)


REFUSED = {
    "low, high: must satisfy 0 < low < high, got 0.0 and 80.0": lambda: Karras(low=0.0),
    "low, high: must satisfy 0 < low < high, got 2.0 and 1.0": lambda: Karras(2.0, 1.0),
    "rho: must be positive, got 0.0": lambda: Karras(rho=0.0),
    "upto: must be in (0, 1], got 1.5": lambda: Karras(upto=1.5),
    "upto: must be in (0, 1], got 0.0": lambda: Karras(upto=0.0),
    "std: must be positive, got -1.0": lambda: LogNormal(std=-1.0),
    "low, high: must satisfy 0 < low < high < 1, got 0.001 and 1.0": lambda: UniformFlow(high=1.0),
    "low, high: must satisfy 0 < low < high < 1, got 0.9 and 0.1": lambda: UniformFlow(0.9, 0.1),
    "times: steps 20 to 1000 do not fit 0 to 999": lambda: UniformSteps(last=1000).check(DiscreteVP()),
    "times: steps 30 to 20 do not fit 0 to 999": lambda: UniformSteps(30, 20).check(DiscreteVP()),
    "times: uniform_steps needs a discrete_vp path, the teacher's is Flow()": lambda: UniformSteps().nsr(INNER, Flow()),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals(message: str) -> None:
    with pytest.raises(UserError) as error:
        REFUSED[message]()
    assert str(error.value) == message
