"""The sampler of a recipe samples the teacher wherever a run does; a run is none the worse for a stochastic one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import trainers
from distill.conditions import ConditionLike
from distill.denoiser import GuidableDenoiser
from distill.errors import UserError
from distill.guidance import classifier_free
from distill.random import Random
from distill.samplers import DDIM, DPM2M, DPMSDE, DPMV3, Guidance, Heun, ModelStatistics, Sampler
from distill.teachers import load_denoiser
from tests.pipelines import pipelines
from tests.tiny import experiment, fit_run, opened, recipe, teacher_recipe
from trainers.engine.sampler import make_sampler
from trainers.io.teacher_hash import weights_hash
from trainers.recipe.run import Run
from trainers.recipe.strict_yaml import dump
from trainers.runs import make_pairs, model_statistics
from trainers.runs.bare_model import BareModel, SamplerWords, open_model, set_sampler
from trainers.runs.draw import draw
from trainers.runs.open import check_sampler

__all__ = ["pipelines"]

SHORT = {"name": "dpm_2m", "evaluations": 3}


@dataclass(frozen=True, kw_only=True)
class Mine(Sampler):
    """A user's own sampler, which estimates once."""

    factor: float = 1.0

    def solve(self, denoiser: GuidableDenoiser, z: Tensor, cond: ConditionLike, random: Random | None) -> Tensor:
        t = torch.full((len(z),), 80.0, dtype=torch.float64)
        found: Tensor = denoiser(80 * z, t, cond) * self.factor
        return found


def refusal(settings: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        opened(settings)
    return str(error.value)


def test_the_key_is_a_name_or_a_mapping(teachers: Path) -> None:
    assert experiment(recipe(teachers / "edm")).sampler == Heun()
    assert experiment(recipe(teachers / "edm", sampler="dpm_2m")).sampler == DPM2M()
    given = {"name": "dpm_2m", "evaluations": 12, "guidance": {"cfg": 2.0, "interval": [0.2, 3.0]}}
    run = experiment(recipe(teachers / "edm", sampler=given))
    assert run.sampler == DPM2M(evaluations=12, guidance=Guidance(cfg=2.0, interval=(0.2, 3.0)))
    again = experiment(dump(run))
    assert again == run
    line = refusal(recipe(teachers / "edm", sampler="dpm2m"))
    assert "sampler" in line and "dpm_2m" in line
    assert "unknown key 'sampler.eta'" in refusal(recipe(teachers / "edm", sampler={"name": "heun", "eta": 1.0}))


def test_what_a_teacher_cannot_take_is_refused_before_training(teachers: Path) -> None:
    uniform = {"name": "euler", "spacing": "uniform"}
    assert refusal(recipe(teachers / "edm", sampler=uniform)).startswith("spacing: uniform needs a path whose time")
    guided = {"name": "heun", "guidance": {"cfg": 2.0}}
    assert refusal(recipe(teachers / "edm", sampler=guided)).startswith("sampler.guidance.cfg: the teacher states no")
    assert refusal(teacher_recipe(sampler=guided)).startswith("sampler.guidance.cfg: needs a null condition; set label")
    assert refusal(teacher_recipe(sampler=uniform)).startswith("spacing: uniform needs a path whose time has an end")
    weak = {"name": "heun", "guidance": {"autoguidance": 2.0, "weak_teacher": str(teachers / "edm")}}
    assert refusal(teacher_recipe(sampler=weak)).startswith("sampler.guidance.weak_teacher: a teacher that trains")
    opened(recipe(teachers / "edm", sampler=weak))


def test_it_samples_the_teacher_of_a_run(teachers: Path, tmp_path: Path) -> None:
    """In the health reference and of the trained model; the student's samples stay as they are."""
    folders = {}
    for name, sampler in (("short", SHORT), ("plain", "heun"), ("noisy", {"name": "dpm_sde", "evaluations": 3})):
        folders[name] = tmp_path / name
        fit_run(
            recipe(teachers / "edm", images=16, health={"every": 8, "samples": 4}, sampler=sampler), tmp_path / name
        )
    trained = {name: trainers.load(folder) for name, folder in folders.items()}
    students = [one.sample(4) for one in trained.values()]
    assert all(torch.equal(students[0], other) for other in students[1:])
    drawn = {name: one.sample(4, teacher=True) for name, one in trained.items()}
    assert not torch.equal(drawn["short"], drawn["plain"])
    assert torch.equal(drawn["noisy"], trained["noisy"].sample(4, teacher=True))
    assert torch.allclose(drawn["noisy"][:2], trained["noisy"].sample(2, teacher=True), atol=1e-5)
    z, cond = torch.randn(3, 1, 8, 8), torch.arange(3)
    expected = DPM2M(evaluations=3).sample(load_denoiser(teachers / "edm"), z, cond)
    sampler = trained["short"].teacher_sampler
    assert sampler is not None and torch.allclose(sampler(z, cond), expected, atol=1e-6)
    references = {name: (folder / "health.safetensors").read_bytes() for name, folder in folders.items()}
    assert len(set(references.values())) == 3
    moved = trainers.load(folders["short"], sampler={"name": "heun"})
    assert torch.equal(moved.sample(4, teacher=True), drawn["plain"])


def test_guidance_of_the_sampler_takes_the_place_of_the_objectives(teachers: Path, tmp_path: Path) -> None:
    guided = {"name": "guided", "objective": "sid", "teacher_cfg": 3.0, "fake_cfg": 1.0, "fake_training_cfg": 1.0}
    settings = recipe(teachers / "null", objective=guided, images=8, sampler={**SHORT, "guidance": {"cfg": 1.5}})
    fit_run(settings, tmp_path / "run")
    trained = trainers.load(tmp_path / "run")
    teacher, z, cond = load_denoiser(teachers / "null"), torch.randn(3, 1, 8, 8), torch.arange(3)
    sampler, heun = trained.teacher_sampler, DPM2M(evaluations=3)
    expected = heun.sample(classifier_free(teacher, 1.5, teacher.null), z, cond)
    assert sampler is not None and torch.allclose(sampler(z, cond), expected, atol=1e-6)
    other = trainers.load(tmp_path / "run", sampler=dict(SHORT)).teacher_sampler
    expected = heun.sample(classifier_free(teacher, 3.0, teacher.null), z, cond)
    assert other is not None and torch.allclose(other(z, cond), expected, atol=1e-6)


def test_a_weak_teacher_guides(teachers: Path, tmp_path: Path) -> None:
    weak = {**SHORT, "guidance": {"autoguidance": 2.0, "weak_teacher": str(teachers / "dropout")}}
    fit_run(recipe(teachers / "edm", images=8, health={"every": 8, "samples": 4}, sampler=weak), tmp_path / "run")
    sampler = trainers.load(tmp_path / "run").teacher_sampler
    strong, other = (load_denoiser(teachers / name) for name in ("edm", "dropout"))
    z, cond = torch.randn(3, 1, 8, 8), torch.arange(3)
    guided = Guidance(autoguidance=2.0, weak_teacher="w").guide(strong, other)
    expected = DPM2M(evaluations=3).sample(guided, z, cond)
    assert sampler is not None and torch.allclose(sampler(z, cond), expected, atol=1e-6)


def test_a_sampler_of_ones_own(teachers: Path) -> None:
    settings = recipe(teachers / "edm", sampler={"name": f"{__name__}:Mine", "factor": 2.0})
    run = experiment(settings)
    assert isinstance(run, Run) and run.sampler == Mine(factor=2.0)
    assert dump(run)["sampler"]["name"] == f"{__name__}:Mine"
    teacher, z = load_denoiser(teachers / "edm"), torch.randn(2, 1, 8, 8)
    t = torch.full((2,), 80.0, dtype=torch.float64)
    assert torch.equal(make_sampler(teacher, run)(z, torch.arange(2)), 2 * teacher(80 * z, t, torch.arange(2)).detach())


def test_pairs_are_made_by_a_sampler(teachers: Path) -> None:
    settings = make_pairs.PairSettings(sampler=DPM2M(evaluations=3))
    assert settings.facts["evaluations"] == 3 and settings.facts["sampler"]["name"] == "dpm_2m"
    assert make_pairs.PairSettings(evaluations=3).facts == {"evaluations": 3, "teacher_cfg": 1.0, "seed": 0}
    for sampler, message in (
        (DPMSDE(), r"^sampler: DPMSDE adds noise, and pairs need the probability flow$"),
        (Heun(guidance=Guidance(autoguidance=2.0, weak_teacher="w")), r"^sampler.guidance: pairs are guided by cfg"),
    ):
        with pytest.raises(UserError, match=message):
            make_pairs.PairSettings(sampler=sampler)
    with pytest.raises(UserError, match=r"^teacher_cfg: the sampler has guidance of its own"):
        make_pairs.PairSettings(teacher_cfg=2.0, sampler=Heun(guidance=Guidance(cfg=2.0)))


def test_a_teacher_without_a_run_is_drawn(teachers: Path) -> None:
    model = open_model(str(teachers / "null"))
    assert isinstance(model, BareModel)
    set_sampler(model, SamplerWords(sampler="ddim", evaluations=4, cfg=2.0, cfg_interval=(0.1, 5.0)), teacher=False)
    assert model.run.sampler == DDIM(evaluations=4, guidance=Guidance(cfg=2.0, interval=(0.1, 5.0)))
    assert draw(model, 3).shape == (3, 1, 8, 8)
    with pytest.raises(UserError, match=r"^--cfg-interval, --cfg-rescale: go with --cfg, the scale$"):
        SamplerWords(cfg_rescale=0.5).apply(Heun())
    with pytest.raises(UserError, match=r"^--negative-prompt: the teacher takes no prompts$"):
        set_sampler(model, SamplerWords(negative_prompt="blur"), teacher=False)
    with pytest.raises(UserError, match=r"^teacher: this run is itself a teacher's$"):
        draw(model, 1, teacher=True)
    plain = open_model(str(teachers / "edm"))
    with pytest.raises(UserError, match=r"^sampler.guidance.cfg: the teacher states no null condition"):
        set_sampler(plain, SamplerWords(cfg=2.0), teacher=False)


def test_samples_are_drawn_in_the_precision_that_is_asked_for(teachers: Path, tmp_path: Path) -> None:
    """Of a model without a run, of a student and of its teacher. A report says it, and no numbers are shared."""
    changes = {"precision": "bfloat16", "sampler": SHORT, "evaluation": {"samples": 8}}
    plain, half = (open_model(str(teachers / "edm"), changes=one) for one in ({"sampler": SHORT}, changes))
    difference = (draw(plain, 3) - draw(half, 3)).abs().max()
    assert 1e-5 < difference < 0.1 and half.run.evaluation.count == 8
    with pytest.raises(UserError, match=r"images: 1 -> 2: can be changed here: evaluation, precision, sampler$"):
        open_model(str(teachers / "edm"), changes={"images": 2})
    cache = {"cache": str(tmp_path / "cache"), "sampler": SHORT, "evaluation": {"samples": 8, "components": 4}}
    fit_run(recipe(teachers / "edm", images=8, **cache), tmp_path / "run")
    full, low = (trainers.load(tmp_path / "run", precision=one).evaluate() for one in ("float32", "bfloat16"))
    assert (full["precision"], low["precision"]) == ("float32", "bfloat16")
    for model in ("student", "teacher"):
        assert 0 < abs(full[model]["frechet"] - low[model]["frechet"]) < 0.05 * full[model]["frechet"]
    assert trainers.load(tmp_path / "run").evaluate() == full


def test_statistics_are_measured_once(
    teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By the first command that needs them, into the cache. A recipe names the file, and is refused without one."""
    monkeypatch.setattr(model_statistics, "TRAJECTORIES", 4)
    monkeypatch.setattr(model_statistics, "STATISTICS_LEVELS", 5)
    words = SamplerWords(sampler="dpm_v3", evaluations=3)

    def chosen(folder: str, words: SamplerWords) -> DPMV3:
        model = open_model(str(teachers / folder))
        set_sampler(model, words, teacher=False, cache=str(tmp_path))
        assert isinstance(model, BareModel) and draw(model, 2).isfinite().all()
        assert isinstance(model.run.sampler, DPMV3)
        return model.run.sampler

    first = chosen("null", words)
    file = Path(str(first.statistics))
    assert first == DPMV3(evaluations=3, statistics=str(file)) and file.parent == tmp_path / "statistics"
    assert capfd.readouterr().err.endswith(f"sampler.statistics: {file}\n")
    found = ModelStatistics.load(file)
    assert found.l.shape == (5, 1, 8, 8) and found.teacher == weights_hash(load_denoiser(teachers / "null"))
    with monkeypatch.context() as again:
        again.setattr(model_statistics, "measure_statistics", lambda *given, **more: pytest.fail("measured again"))
        assert chosen("null", words) == first
    guided = chosen("null", replace(words, cfg=2.0))
    other = chosen("edm", words)
    assert len({first.statistics, guided.statistics, other.statistics}) == 3
    strong = ModelStatistics.load(Path(str(guided.statistics)))
    assert not torch.allclose(strong.l, found.l, atol=1e-4)
    file.write_bytes(b"damaged")
    chosen("null", words)
    assert torch.equal(ModelStatistics.load(file).l, found.l)

    teacher = load_denoiser(teachers / "null")
    named = experiment(recipe(teachers / "null", sampler={"name": "dpm_v3", "statistics": str(file), "order": 2}))
    assert isinstance(named, Run)
    check_sampler(named, teacher)
    with pytest.raises(UserError, match=r"^sampler.statistics: dpm_v3 needs the statistics of the teacher; `distill"):
        check_sampler(experiment(recipe(teachers / "null", sampler="dpm_v3")), teacher)  # type: ignore[arg-type]
    ModelStatistics.constant(teacher.path, (3,), 1.0).save(file)
    with pytest.raises(
        UserError, match=r"^sampler.statistics: are of samples with shape \(3,\), these have \(1, 8, 8\)$"
    ):
        check_sampler(named, teacher)


def test_a_teacher_of_prompts_needs_a_file(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    model = open_model(str(pipelines("sd15")))
    with pytest.raises(UserError, match=r"^--sampler: dpm_v3 needs the statistics of this teacher on some prompts"):
        set_sampler(model, SamplerWords(sampler="dpm_v3"), teacher=False, cache=str(tmp_path))
