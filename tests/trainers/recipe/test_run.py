"""What a recipe may say: every value out of range is one line that names its key; the rest comes back from run.yaml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from distill.errors import UserError
from distill.lora import Lora
from distill.objectives import OBJECTIVES
from distill.times import TIMES
from tests.tiny import DISTILLATIONS, ROOT, experiment, recipe, teacher_recipe
from trainers.data import DATA
from trainers.recipe.load import build_experiment, load_run
from trainers.recipe.run import (
    Average,
    Evaluation,
    FakeWarmup,
    GeneratorInput,
    Health,
    OdePairs,
    PlayerSettings,
    PowerEMA,
    Run,
    Sharding,
)
from trainers.recipe.strict_yaml import dump, known_keys, load_yaml, to_yaml
from trainers.recipe.teacher_run import TeacherRun

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"images": 0}, "images: must be positive, got 0"),
    ({"batch_size": -8}, "batch_size: must be positive, got -8"),
    ({"micro_batches": 0}, "micro_batches: must be positive, got 0"),
    ({"micro_batches": 3}, "micro_batches: 3 must divide batch_size 8"),
    ({"max_skipped": 0}, "max_skipped: must be positive, got 0"),
    ({"log_every": 0}, "log_every: must be positive, got 0"),
    ({"samples_every": 0}, "samples_every: must be positive, got 0"),
    ({"checkpoint_every": 0}, "checkpoint_every: must be positive, got 0"),
    ({"keep": 0}, "keep: must be positive, got 0"),
    ({"max_grad_norm": 0}, "max_grad_norm: must be positive, got 0"),
    ({"fake_updates": 0}, "fake_updates: must be positive, got 0"),
    ({"name": "a/b"}, "name: must be a plain folder name, got 'a/b'"),
    ({"name": ".."}, "name: must be a plain folder name, got '..'"),
    (
        {"objective": {"name": "dmd2", "features": "teacher"}, "sharding": {}},
        "sharding.teacher: DMD2 reads features inside the teacher; set it to false",
    ),
    (
        {"objective": {"name": "guided", "objective": {"name": "dmd2", "features": "teacher"}}, "sharding": {}},
        "sharding.teacher: Guided reads features inside the teacher; set it to false",
    ),
    ({"reuse_samples": True, "micro_batches": 2}, "reuse_samples: needs micro_batches = 1, since it keeps the graph"),
    ({"generator": {"lr": 0}}, "key 'generator': lr: must be positive, got 0"),
    ({"generator": {"lr": float("nan")}}, "key 'generator.lr' must be a number, got nan"),
    ({"fake": {"eps": 0}}, "key 'fake': eps: must be positive, got 0"),
    ({"fake": {"warmup": -1}}, "key 'fake': warmup: must be at least 0, got -1"),
    ({"fake": {"weight_decay": -0.1}}, "key 'fake': weight_decay: must be at least 0, got -0.1"),
    ({"fake": {"betas": [0.9, 1.0]}}, "key 'fake': betas: must be at least 0 and below 1, got [0.9, 1"),
    ({"fake": {"betas": [-0.1, 0.9]}}, "key 'fake': betas: must be at least 0 and below 1, got [-0.1, 0.9]"),
    ({"ema": {"half_life": -1}}, "key 'ema': half_life: must be at least 0, got -1"),
    ({"ema": {"ramp_up": -1}}, "key 'ema': ramp_up: must be at least 0, got -1"),
    ({"power_ema": {}}, "missing key 'power_ema.snapshot_every': it must be an integer"),
    ({"power_ema": {"snapshot_every": 0}}, "key 'power_ema': snapshot_every: must be positive, got 0"),
    (
        {"power_ema": {"snapshot_every": 8, "stds": []}},
        "key 'power_ema': stds: must be one or more different widths, got",
    ),
    ({"power_ema": {"snapshot_every": 8, "stds": [0.1, 0.1]}}, "key 'power_ema': stds: must be one or more different"),
    (
        {"power_ema": {"snapshot_every": 8, "stds": [0.3]}},
        "key 'power_ema': std: must be above 0 and below 0.2887 (the",
    ),
    ({"entry": {"nsr": 0}}, "key 'entry': nsr: must be positive, got 0"),
    ({"entry": {"t": 625, "scale": 0}}, "key 'entry': scale: must be positive, got 0"),
    ({"entry": {"nsr": 1, "t": 625}}, "key 'entry': one of nsr, t and preset says the time, got nsr and t"),
    ({"entry": {"t": 625, "preset": "dmd2_sd"}}, "key 'entry': one of nsr, t and preset says the time, got t and pre"),
    ({"entry": {"preset": "sid"}}, "key 'entry': preset: must be one of sid_edm, diff_instruct_edm, dmd2_edm, sid_lsg"),
    ({"entry": {"preset": "dmd2_sd", "scale": 1}}, "key 'entry': scale: the preset 'dmd2_sd' has its own; give t and"),
    ({"evaluation": {"every": -1}}, "key 'evaluation': every: must be at least 0, got -1"),
    ({"evaluation": {"samples": 1}}, "key 'evaluation': samples: must be at least 2, got 1"),
    ({"evaluation": {"components": 0}}, "key 'evaluation': components: must be positive, got 0"),
    (
        {"objective": {"name": "sid", "weight": "l2"}},
        "key 'objective.weight' must be one of 'l1', 'none', '1-t', '(1-t)^2', '1/t', 'snr', 'snr/(1+snr)', got 'l2'",
    ),
    (
        {"objective": {"name": "sim", "distance": "l2"}},
        "key 'objective.distance' must be one of squared_l2, huber, pseudo_huber, power, exponential or your own",
    ),
    (
        {"objective": {"name": "sim", "distance": {"name": "power", "p": 3}}},
        "key 'objective.distance': p: must be even and at least 2, got 3",
    ),
    (
        {"objective": {"name": "sim", "distance": {"name": "huber", "c": 0}}},
        "key 'objective.distance': c: must be positive, got 0",
    ),
    (
        {"objective": {"name": "sim", "distance": {"name": "squared_l2", "c": 1}}},
        "unknown key 'objective.distance.c'; allowed: none",
    ),
    ({"objective": {"name": "realuid", "a": 0}}, "key 'objective': a: must be positive, got 0"),
    ({"trains": "both"}, "key 'trains' must be one of generator, teacher, got 'both'"),
    ({"trains": []}, "key 'trains' must be one of generator, teacher, got []"),
    ({"precision": "fp16"}, "key 'precision' must be one of 'float32', 'bfloat16', 'float64', got 'fp16'"),
    (
        {"tracking": ["mlflow"]},
        "key 'tracking' must be a list [one of 'wandb', 'tensorboard', 'trackio', ...], got ['mlflow']",
    ),
]
WRONG_TEACHER: list[tuple[dict[str, Any], str]] = [
    ({"sigma_data": 0}, "sigma_data: must be positive, got 0"),
    ({"network": {"in_channels": 3}}, "network: in_channels follow from data and must not be given"),
    (
        {"optimizer": {"name": "lion"}},
        "key 'optimizer.name' must be one of 'adam', 'adamw', 'sgd', 'adam8bit', 'adamw8bit', got 'lion'",
    ),
    ({"times": "uniform_steps"}, "times: uniform_steps needs a discrete_vp path, the teacher's is EDM()"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_a_distillation_out_of_range(changes: dict[str, Any], message: str) -> None:
    refuse(recipe(Path("unused")) | changes, message)


@pytest.mark.parametrize(("changes", "message"), WRONG_TEACHER)
def test_a_teacher_out_of_range(changes: dict[str, Any], message: str) -> None:
    refuse(teacher_recipe() | changes, message)


def refuse(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        experiment(settings)
    assert str(caught.value).startswith(f"test: {message}") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("processes", "micro", "fits"), [(1, 1, True), (2, 4, True), (8, 1, True), (3, 1, False), (4, 4, False)]
)
def test_the_batch_divides_over_processes_and_micro_batches(processes: int, micro: int, fits: bool) -> None:
    run = experiment(recipe(Path("unused"), micro_batches=micro))
    if fits:
        return run.check_world(processes)
    message = f"batch_size: 8 is not divisible by processes x micro_batches = {processes} x {micro}"
    with pytest.raises(UserError, match=message):
        run.check_world(processes)


@pytest.mark.parametrize("name", ["tiny", "1e5", "007", "null", "yes", "a: b", "é"])
def test_run_yaml_is_the_run(name: str, tmp_path: Path) -> None:
    """Fully resolved, and read back as it was, whatever its name looks like in YAML."""
    for settings, kind in ((recipe(Path("t"), name=name), Run), (teacher_recipe(name=name), TeacherRun)):
        run = experiment(settings)
        assert type(run) is kind
        (tmp_path / "run.yaml").write_text(to_yaml(dump(run)), encoding="utf-8")
        assert load_run(tmp_path) == run
        assert load_yaml(tmp_path / "run.yaml")["ema"] == {"half_life": 32.0, "ramp_up": 0.05}


def test_a_recipe_with_a_network_is_a_teachers() -> None:
    settings = teacher_recipe()
    assert isinstance(build_experiment(settings, "x"), TeacherRun)
    with pytest.raises(UserError, match="x: unknown key 'network'"):
        build_experiment({**settings, "trains": "generator"}, "x")


def test_every_objective_is_trained_by_the_tests() -> None:
    """Exact resume, data parallelism and back-propagation run over DISTILLATIONS: a new objective needs a row there."""
    spelled = [changes["objective"] for _, changes in DISTILLATIONS.values()]
    assert {one if isinstance(one, str) else one["name"] for one in spelled} >= set(OBJECTIVES)


def test_the_documentation_lists_every_key() -> None:
    """In a row of its group, to which errors send whoever wrote an unknown key."""
    rows = {row.split("|")[1].strip(): row for row in (ROOT / "docs/recipes.md").read_text().splitlines() if "|" in row}
    of_runs = {*known_keys(Run), *known_keys(TeacherRun)}
    listed = {key for name in ("every run", "a distillation", "the training of a teacher") for key in named(rows[name])}
    assert listed == {key for key in of_runs if "." not in key}
    groups = {f"`data`: `{name}`": kind for name, kind in DATA.items()}
    groups |= {f"`times`: `{name}`": kind for name, kind in TIMES.items()}
    groups |= {"`generator`, `fake`, `optimizer`": PlayerSettings, "`lora`": Lora, "`ema`": Average}
    groups |= {"`power_ema`": PowerEMA, "`evaluation`": Evaluation, "`entry`": GeneratorInput}
    groups |= {"`pairs`": OdePairs, "`sharding`": Sharding, "`fake_warmup`": FakeWarmup, "`health`": Health}
    for group, kind in groups.items():
        keys = {key for key in known_keys(kind) if "." not in key}
        assert not keys or named(rows[group]) - ({"optimizer"} if kind is PlayerSettings else set()) == keys, group


def named(row: str) -> set[str]:
    """The words in backquotes in the second cell of a row."""
    return set(re.findall(r"`(\w+)`", row.split("|")[2]))
