"""Guidance while a teacher is sampled: what it computes, where it is at work, and what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill import EDM, Flow, Path
from distill.guidance import GuidedDenoiser, classifier_free
from distill.prediction import from_x0
from distill.samplers import Euler, Guidance, Heun
from tests.distill.samplers.mixture import Z, mixture

LABELS = torch.arange(64) % 2


def counted(path: Path) -> tuple[object, list[Tensor | None]]:
    """Return a teacher and the labels of its calls."""
    teacher, calls = mixture(path), list[Tensor | None]()
    teacher.register_forward_pre_hook(
        lambda module, inputs: calls.append(inputs[2] if isinstance(inputs[2], Tensor) else inputs[2].get("labels"))
    )
    return teacher, calls


def test_a_constant_scale_is_classifier_free_guidance() -> None:
    teacher = mixture(EDM())
    guided, known = Guidance(cfg=3.0).guide(teacher), classifier_free(teacher, 3.0, teacher.null)
    assert isinstance(guided, GuidedDenoiser) and guided.scale == 3.0
    assert torch.equal(Heun().sample(guided, Z, LABELS), Heun().sample(known, Z, LABELS))
    plain = Guidance(cfg=1.0, rescale=0.5).guide(teacher)
    assert torch.equal(Heun().sample(plain, Z, LABELS), Heun().sample(teacher, Z, LABELS))


def test_autoguidance_moves_away_from_the_weak_teacher() -> None:
    strong, weak = mixture(EDM()), mixture(EDM())
    weak.stds.mul_(2)
    guided = Guidance(autoguidance=2.0, weak_teacher="weak").guide(strong, weak)
    x, t = Z, torch.full((64,), 0.7, dtype=torch.float64)
    expected = weak(x, t, LABELS) + 2 * (strong(x, t, LABELS) - weak(x, t, LABELS))
    assert torch.equal(guided(x, t, LABELS), expected)


@pytest.mark.parametrize("rescale", [0.0, 0.6])
def test_an_interval_guides_inside_it_alone(rescale: float) -> None:
    """It includes its upper end and not its lower one, as ratios on any path, and costs nothing outside."""
    path = Flow()
    teacher, calls = counted(path)
    guided = Guidance(cfg=3.0, interval=(0.5, 2.0), rescale=rescale).guide(teacher)  # type: ignore[arg-type]
    everywhere = Guidance(cfg=3.0, rescale=rescale).guide(teacher)  # type: ignore[arg-type]
    for nsr, inside in ((0.4999, False), (0.5001, True), (1.9999, True), (2.0001, False)):
        t = path.time(torch.full((64,), nsr, dtype=torch.float64))
        expected = (everywhere if inside else teacher)(Z, t, LABELS)  # type: ignore[operator]
        calls.clear()
        assert torch.equal(guided(Z, t, LABELS), expected)
        assert len(calls) == (2 if inside else 1)
    mixed = path.time(torch.tensor([0.1, 1.0] * 32, dtype=torch.float64))
    found = guided(Z, mixed, LABELS)
    assert torch.equal(found[::2], teacher(Z, mixed, LABELS)[::2])  # type: ignore[operator]
    assert torch.equal(found[1::2], everywhere(Z, mixed, LABELS)[1::2])
    calls.clear()
    Euler(evaluations=10).sample(guided, Z, LABELS)
    asked = Euler(evaluations=10).levels(path).nsr[:-1]
    assert len(calls) == 10 + int(((asked > 0.5) & (asked <= 2.0)).sum())


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "velocity", "edm", "score"])
def test_rescaled_outputs_have_the_standard_deviation_of_the_plain_ones(kind: str) -> None:
    path = Flow()
    teacher = mixture(path)
    teacher.prediction = kind  # type: ignore[assignment]
    t = path.time(torch.full((64,), 0.8, dtype=torch.float64))

    def outputs(x0: Tensor) -> Tensor:
        return from_x0(teacher.prediction, path, x0, Z, t, teacher.sigma_data)

    def std(x0: Tensor) -> Tensor:
        return outputs(x0).flatten(1).std(1)

    plain, guided = teacher(Z, t, LABELS), Guidance(cfg=4.0).guide(teacher)(Z, t, LABELS)
    full = Guidance(cfg=4.0, rescale=1.0).guide(teacher)(Z, t, LABELS)
    assert torch.allclose(std(full), std(plain), rtol=1e-6)
    assert not torch.allclose(std(guided), std(plain), rtol=1e-2)
    # It scales the output, and phi mixes the two, as in the paper.
    part = Guidance(cfg=4.0, rescale=0.7).guide(teacher)(Z, t, LABELS)
    assert torch.allclose(outputs(part), 0.7 * outputs(full) + 0.3 * outputs(guided), rtol=1e-9)
    ratio = outputs(full) / outputs(guided)
    assert torch.allclose(ratio[:, 0], ratio[:, 1], rtol=1e-6)
