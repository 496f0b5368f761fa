"""Teachers learn a null condition where labels are dropped; what guidance and rewards cannot use is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import trainers
from distill.errors import UserError
from distill.guidance import GuidedDenoiser, classifier_free
from distill.sampling import sample
from distill.teachers import load_denoiser, save_denoiser
from launch.commands.evaluate import table
from tests.tiny import build_session, distillation, experiment, fit_run, opened, placed, recipe, teacher_recipe
from trainers.data import Dataset
from trainers.floor import measure_floor
from trainers.recipe.load import load_run, resolve
from trainers.recipe.run import Run
from trainers.recipe.teacher_run import TeacherRun
from trainers.runs.open import Opened, open_teacher_run


def test_labels_are_dropped_with_their_probability() -> None:
    """By the sample's own random numbers: other micro-batches drop the same ones."""
    seen: list[list[Tensor]] = []
    for micro_batches in (1, 4):
        session = build_session(teacher_recipe(label_dropout=0.25, micro_batches=micro_batches))
        labels: list[Tensor] = []
        embedding = session.state.players["teacher"].bare.network.unet.class_embedding
        embedding.register_forward_hook(lambda module, inputs, output, labels=labels: labels.append(inputs[0]))
        for _ in range(40):
            session.update_players(session)
            session.state.images += 8
        seen.append(labels)
    one, four = (torch.cat(labels) for labels in seen)
    assert torch.equal(one, four)
    assert 55 < int((one == 10).sum()) < 105  # 80 of 320 expected, standard deviation 8
    assert set(one.tolist()) == set(range(11))


def test_a_teacher_with_label_dropout_can_be_guided(tmp_path: Path) -> None:
    fit_run(teacher_recipe(label_dropout=0.1, images=16), tmp_path)
    teacher = load_denoiser(tmp_path / "teacher")
    assert (teacher.network.null_label, teacher.network.classes) == (10, 10)
    assert len(teacher.network.unet.class_embedding.weight) == 11
    assert refusal(recipe(tmp_path / "teacher", objective={"name": "guided", "objective": "sid"})) is None


def refusal(settings: dict[str, Any]) -> str | None:
    try:
        opened(settings)
    except UserError as error:
        return str(error)
    return None


def test_label_dropout_that_cannot_be() -> None:
    with pytest.raises(UserError, match=r"label_dropout: must be at least 0 and below 1, got 1.0$"):
        experiment(teacher_recipe(label_dropout=1.0))
    run = experiment(teacher_recipe(label_dropout=0.1))
    assert isinstance(run, TeacherRun)
    with pytest.raises(UserError, match=r"^label_dropout: plain has no labels to drop; set it to 0$"):
        data = Dataset("plain", 2, (1, 8, 8), None, lambda positions: torch.zeros(len(positions), 1, 8, 8))
        open_teacher_run(Opened(run, data), weights=False)


NO_NULL = (
    "objective: guidance needs a teacher with a null condition, this one states none: it must be conditional"
    " and trained with label_dropout"
)
REFUSALS: dict[str, tuple[str, dict[str, Any], str]] = {
    "guided": ("edm", {"name": "guided", "objective": "sid"}, NO_NULL),
    "decoupled": ("edm", {"name": "decoupled", "objective": "sid"}, NO_NULL),
    "within": ("edm", {"name": "guided", "objective": {"name": "decoupled", "objective": "sid"}}, NO_NULL),
    "dropout": (
        "null",
        {"name": "guided", "objective": "sid", "condition_dropout": 2.0},
        "test: key 'objective': condition_dropout: must be between 0 and 1, got 2.0",
    ),
    "weak teacher's path": (
        "edm",
        {"name": "autoguided", "objective": "sid", "weak_teacher": "TEACHERS/flow"},
        "weak_teacher: 'TEACHERS/flow' has path Flow(), the teacher EDM()",
    ),
    "weak teacher": (
        "edm",
        {"name": "autoguided", "objective": "sid", "weak_teacher": "TEACHERS/nowhere"},
        "teacher: no folder 'TEACHERS/nowhere'; `distill teacher` trains one, `distill import` fetches one",
    ),
    "inner": (
        "null",
        {"name": "guided", "objective": {"name": "sid", "times": "uniform_steps"}},
        "times: uniform_steps needs a discrete_vp path, the teacher's is EDM()",
    ),
    "classifier": (
        "edm",
        {
            "name": "rewarded",
            "objective": "sid",
            "reward": {"name": "classifier", "classifier": "TEACHERS/edm"},
            "reward_scale": 1.0,
        },
        "classifier: cannot read 'TEACHERS/edm': ",
    ),
    "reward": (
        "edm",
        {"name": "rewarded", "objective": "sid", "reward": "clip", "reward_scale": 1.0},
        "test: key 'objective.reward' must be one of classifier, clip_score, pick_score, hps, image_reward, aesthetic"
        " or your own 'module:Class'",
    ),
    "no inner": (
        "null",
        {"name": "guided"},
        "test: missing key 'objective.objective': it must be one of ",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str, teachers: Path) -> None:
    teacher, objective, message = REFUSALS[name]
    line = refusal(recipe(teachers / teacher, objective=placed(objective, teachers)))
    assert line is not None and line.startswith(placed(message, teachers))


def test_a_weak_teacher_is_found_from_anywhere(teachers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(teachers)
    run = resolve(distillation("autoguided", Path()))
    monkeypatch.chdir("/")
    assert isinstance(run, Run) and Path(run.objective.weak_teacher) == teachers / "dropout"  # type: ignore[attr-defined]


def autoguided(teachers: Path, tmp_path: Path) -> dict[str, Any]:
    """Return a recipe of 8 images, whose weak teacher is the teacher with weights of half their size."""
    weak = load_denoiser(teachers / "edm")
    with torch.no_grad():
        for parameter in weak.parameters():
            parameter.mul_(0.5)
    save_denoiser(weak, tmp_path / "weak")
    objective = {"name": "autoguided", "objective": "sid", "weak_teacher": str(tmp_path / "weak")}
    changes = {"images": 8, "batch_size": 8, "health": {"every": 0}, "cache": str(tmp_path / "cache")}
    return recipe(teachers / "edm", objective=objective, **changes)


def test_a_student_is_compared_with_the_autoguided_teacher(teachers: Path, tmp_path: Path) -> None:
    """Numbers in the cache are those of one weak teacher. The floor's pairs have no such guidance."""
    trained = trainers.train(autoguided(teachers, tmp_path), tmp_path / "run")
    noise, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    weak = load_denoiser(tmp_path / "weak")
    assert trained.teacher is not None and trained.teacher_sampler is not None
    guided = sample(GuidedDenoiser(trained.teacher, weak, 2.0), noise, labels)
    assert torch.equal(trained.teacher_sampler(noise, labels), guided)
    assert not torch.allclose(guided, sample(trained.teacher, noise, labels))
    report = trained.evaluate(64)
    assert report["teacher_autoguidance"] == 2.0 and "teacher_cfg" not in report
    assert "teacher guided at 2 by a weaker one" in str(table(report, "").title)
    with torch.no_grad():  # another weak teacher than that of the cached numbers
        next(trained.guides["weak_teacher"].parameters()).mul_(2)
    assert trained.evaluate(64)["teacher"] != report["teacher"]
    measure_floor(tmp_path / "run", samples=64, pairs=8)
    assert json.loads((tmp_path / "run/floor/pairs/pairs.json").read_text())["teacher_cfg"] == 1.0


def test_without_its_weak_teacher_a_student_is_measured_alone(teachers: Path, tmp_path: Path) -> None:
    trained = trainers.train(autoguided(teachers, tmp_path), tmp_path / "run")
    shutil.rmtree(tmp_path / "weak")
    assert "student" in trained.evaluate(64, student_only=True)
    with pytest.raises(UserError, match="weak"):
        trained.evaluate(64)


def test_a_student_is_compared_with_the_equally_guided_teacher(teachers: Path, tmp_path: Path) -> None:
    """The scale is the teacher's over the quotient of the fake's two, at which the generator has its optimum."""
    objective = {"name": "guided", "teacher_cfg": 3.0, "fake_cfg": 2.0, "fake_training_cfg": 1.0, "objective": "sid"}
    settings = recipe(teachers / "null", images=8, batch_size=8, objective=objective, health={"every": 0})
    trained = trainers.train(settings, tmp_path / "run")
    noise, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    assert trained.teacher is not None and trained.teacher_sampler is not None
    guided = sample(classifier_free(trained.teacher, 1.5, trained.teacher.null), noise, labels)
    assert torch.equal(trained.teacher_sampler(noise, labels), guided)
    assert not torch.allclose(guided, sample(trained.teacher, noise, labels))
    assert trained.evaluate(64)["teacher_cfg"] == 1.5
    assert trained.sample(2, teacher=True).shape == (2, 1, 8, 8)
    measure_floor(tmp_path / "run", samples=64, pairs=8)  # its pairs are of the same teacher
    assert json.loads((tmp_path / "run/floor/pairs/pairs.json").read_text())["teacher_cfg"] == 1.5
    state = json.loads(next((tmp_path / "run/floor/adversarial/checkpoints").glob("*/state.json")).read_text())
    assert state["data"]["count"] == 8  # its discriminator sees the pairs' samples, and not the data
    assert load_run(tmp_path / "run/floor/adversarial").objects == ("data",)
