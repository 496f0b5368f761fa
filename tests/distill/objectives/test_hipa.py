"""HiPA's maps and terms on images whose frequencies and edges are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distill import EDM, Denoiser, UserError
from distill.objectives import Batch, Denoisers, Pairs
from distill.objectives.guided import Guided
from distill.objectives.hipa import HiPA, edges, high_frequency_loss, high_pass
from distill.perceptual import L1
from tests.toys import given


def wave(cycles: int, size: int = 16) -> Tensor:
    """A cosine along the columns, [1, 2, size, size]."""
    line = (2 * math.pi * cycles * torch.arange(size).double() / size).cos()
    return line.expand(1, 2, size, size)


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize(("cycles", "passes"), [(0, False), (2, False), (3, False), (4, True), (5, True), (8, True)])
def test_high_pass(cycles: int, passes: bool, axis: int) -> None:
    """Half of the Nyquist frequency of 16 pixels is 4 cycles; what passes, passes unchanged."""
    x = wave(cycles).movedim(3, axis)
    assert torch.allclose(high_pass(x, 0.5), x if passes else torch.zeros_like(x), atol=1e-12)
    mixed = high_pass(x + wave(8), 0.5) - wave(8)
    assert torch.allclose(mixed, x if passes else torch.zeros_like(x), atol=1e-12)


def test_edges_are_derivatives() -> None:
    rows, columns = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    maps = edges((3 * columns - 2 * rows + 7).expand(2, 3, 5, 7))
    assert maps.shape == (6, 2, 3, 5)
    assert torch.allclose(maps[:, 0], torch.tensor(3.0)) and torch.allclose(maps[:, 1], torch.tensor(-2.0))


def test_a_video_is_judged_frame_by_frame() -> None:
    made, target = (torch.randn(2, 3, 5, 8, 7, generator=torch.Generator().manual_seed(i)).double() for i in range(2))
    frames = [high_frequency_loss(made[:, :, frame], target[:, :, frame], 0.5) for frame in range(5)]
    assert torch.allclose(high_frequency_loss(made, target, 0.5), torch.stack(frames).mean(0), rtol=1e-12)


def test_a_constant_shift_has_no_high_frequency() -> None:
    x, target = wave(3), wave(8)
    assert float(high_frequency_loss(x + 0.7, x, 0.5)) == pytest.approx(0, abs=1e-20)
    assert float(high_frequency_loss(x + target, x, 0.5)) == pytest.approx(float((target**2).mean()), rel=1e-9)
    slope = torch.arange(16.0).double().expand(1, 2, 16, 16)  # edges see one in each of two maps, and half of them
    whole = float((high_pass(slope, 0.5) ** 2).mean())
    assert float(high_frequency_loss(x + slope, x, 0.5)) - whole == pytest.approx(0.5, rel=1e-9)


def test_the_objective_is_their_weighted_sum_over_elements() -> None:
    noise, made, target = (torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    objective = HiPA(perceptual=L1(), high_frequency=3.0, cutoff=0.4)
    unused = Denoiser(torch.nn.Identity(), EDM(), "x0")
    nets = Denoisers(EDM(), unused, unused, objective.load_frozen())
    batch = Batch(noise, given(noise), pairs=Pairs(noise, target, made=made))
    terms = objective.generator_loss(nets, made[:0], batch)
    assert torch.allclose(terms["perceptual"], (made - target).abs().sum((1, 2, 3)))
    assert torch.allclose(terms["high_frequency"], 3 * 128 * high_frequency_loss(made, target, 0.4))
    for each in (objective, Guided(objective=objective)):
        assert each.needs == {"pairs"} and not each.trains_fake and not each.uses_samples


@pytest.mark.parametrize("settings", [{"cutoff": 0.0}, {"cutoff": 1.0}, {"high_frequency": -1.0}])
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"^(cutoff: must be between 0 and 1|high_frequency: must be at least 0), got "):
        HiPA(**settings)  # type: ignore[arg-type]
