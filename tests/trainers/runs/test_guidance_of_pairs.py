"""ODE pairs are guided as the objective that regresses on them guides its teacher; and the regression alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distill import UserError
from distill.objectives.autoguided import Autoguided
from distill.objectives.dmd import DMD
from distill.perceptual import L1, MSE
from distill.samplers import Guidance, Heun
from distill.tiny.networks import network
from tests.tiny import build_session, opened, recipe, write_pairs
from trainers.engine.step import advance


def guided(teacher: Path, scale: float, **inner: Any) -> dict[str, Any]:
    scales = {"teacher_cfg": scale, "fake_cfg": 1.0, "fake_training_cfg": 1.0}
    return recipe(teacher, objective={"name": "guided", **scales, "objective": {"name": "dmd", **inner}})


@pytest.mark.parametrize("by", ["teacher_cfg", "sampler"])
def test_pairs_of_another_guidance_are_refused(by: str, teachers: Path, tmp_path: Path) -> None:
    teacher, folder = teachers / "null", tmp_path / "pairs"
    sampler = Heun(evaluations=3, guidance=Guidance(cfg=3.0))
    list(write_pairs(teacher, folder, 8, **({"teacher_cfg": 3.0} if by == "teacher_cfg" else {"sampler": sampler})))
    pairs = {"pairs": {"folder": str(folder)}}
    opened(guided(teacher, 3.0) | pairs)
    alone = {"matching": 0.0}
    opened(guided(teacher, 3.0, **alone) | pairs)
    opened(recipe(teacher, objective={"name": "dmd", **alone}) | pairs)  # it takes the pairs as they are
    for settings, scale in (
        (guided(teacher, 2.0), "2"),
        (guided(teacher, 2.0, **alone), "2"),
        (recipe(teacher, objective="dmd"), "1"),
    ):
        with pytest.raises(UserError) as refused:
            opened(settings | pairs)
        assert str(refused.value) == (
            f"pairs: '{folder}' is of a teacher guided at 3, the objective's at {scale};"
            f" make pairs with --teacher-cfg {scale}"
        )


def test_autoguided_pairs_do_not_exist(teachers: Path) -> None:
    weak = str(teachers / "dropout")
    Autoguided(objective=DMD(regression=0.0), weak_teacher=weak).check(network("edm"))
    with pytest.raises(UserError, match=r"^objective: no ODE pairs are autoguided; set regression: 0,"):
        Autoguided(objective=DMD(), weak_teacher=weak).check(network("edm"))


def test_a_regression_alone_trains_the_generator_alone(teachers: Path) -> None:
    objective = {"name": "dmd", "matching": 0.0, "regression": 2.0}
    session = build_session(recipe(teachers / "edm", objective=objective, pairs={"folder": str(teachers / "pairs")}))
    assert list(session.state.players) == ["generator"]
    advance(session)
    assert set(session.state.meter.read(session.accelerator)) >= {"generator/regression", "generator/grad_norm"}
    assert not any("fake" in name or "dmd" in name for name in session.state.meter.read(session.accelerator))


def test_neither_term() -> None:
    with pytest.raises(UserError, match=r"^matching, regression: are both 0; nothing would train$"):
        DMD(matching=0.0, regression=0.0)


class Doubled:
    """An autoencoder whose images are twice the latents."""

    def decode(self, latents: torch.Tensor, graph: bool = False) -> torch.Tensor:
        return 2 * latents if graph else (2 * latents).detach()


def test_latents_are_compared_as_images() -> None:
    made, target = torch.randn(3, 4, 2, 2, requires_grad=True), torch.randn(3, 4, 2, 2, requires_grad=True)
    for distance, factor in ((MSE, 4), (L1, 2)):
        plain, decoded = distance(), distance(decoded=True)
        images = decoded.of_samples(made, target, torch.nn.Identity(), Doubled())  # type: ignore[arg-type]
        latents = plain.of_samples(made, target, torch.nn.Identity(), Doubled())  # type: ignore[arg-type]
        assert torch.allclose(images, factor * latents)
        ours, theirs = (torch.autograd.grad(one.sum(), made, retain_graph=True)[0] for one in (images, latents))
        assert torch.allclose(ours, factor * theirs)
        assert torch.autograd.grad(images.sum(), target, allow_unused=True)[0] is None
    with pytest.raises(UserError, match=r"^perceptual.decoded: the teacher has no autoencoder; leave it out$"):
        MSE(decoded=True).check(network("edm"))
