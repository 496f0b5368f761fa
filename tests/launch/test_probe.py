"""`distill probe` and `distill floor`, on tiny networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.launch.conftest import Command
from tests.tiny import recipe
from trainers.recipe.load import resolve
from trainers.recipe.run import Run
from trainers.recipe.strict_yaml import dump, to_yaml
from trainers.runs.load import load_trained

PROBED = ("--minutes", "0.1", "--run-minutes", "0.1")


@pytest.mark.parametrize(
    ("teacher", "objective", "options"),
    [("edm", "sim", ()), ("edm", "dmd2", ()), ("flow", "fgm", ()), ("null", "sid", ("--cfg", "2"))],
)
def test_a_probe_writes_a_recipe_that_trains(
    distill: Command, teachers: Path, tmp_path: Path, teacher: str, objective: str, options: tuple[str, ...]
) -> None:
    folder = tmp_path / "probe"
    told = distill(
        "probe", teachers / teacher, "--data", "digits", "--objective", objective, "--folder", folder, *PROBED, *options
    )
    assert told.code == 0, told.err
    assert f"recipe: {folder / 'recipe.yaml'}" in told.out
    run = resolve(folder / "recipe.yaml")
    assert isinstance(run, Run) and run.name == f"{teacher}_{objective}"
    numbers = json.loads((folder / "report.json").read_text())
    best = min(numbers["student_by_entry"], key=lambda one: one["distance"])
    assert run.entry.nsr == pytest.approx(best["nsr"], rel=0.01)
    inner = dump(run)["objective"]
    inner = inner["objective"] if options else inner
    assert inner["name"] == objective and inner["times"] == inner["fake_times"]
    errors = [one["error"] for one in numbers["error_by_level"]]
    assert inner["fake_weight"]["weight"] == pytest.approx([1 / error for error in errors], rel=0.01)
    assert numbers["reference"]["are_data"] == (not options)
    with Image.open(folder / "samples.png") as samples, Image.open(folder / "entry.png") as entry:
        rows = samples.height // 66  # 64 pixels, the border of 1 on both sides
        assert rows == 6 and entry.height // 66 == len(numbers["student_by_entry"]) + 1
    trained = tmp_path / "run"
    shorter = ("images=16", "batch_size=8", "evaluation.every=0", "log_every=8", "health.every=0")
    told = distill("train", folder / "recipe.yaml", *shorter, "--folder", trained)
    assert told.code == 0, told.err


def test_a_probe_without_images_says_unknown(distill: Command, teachers: Path, tmp_path: Path) -> None:
    folder = tmp_path / "probe"
    told = distill("probe", teachers / "edm", "--folder", folder, "--minutes", "0.01")
    assert told.code == 0, told.err
    numbers = json.loads((folder / "report.json").read_text())
    assert not numbers["reference"]["are_data"] and 8 <= numbers["reference"]["samples"] < 512
    assert numbers["fake_by_rate"] is numbers["student_by_rate"] is numbers["gradient_by_level"] is None
    assert all(one["floor"] is None for one in numbers["error_by_level"])
    assert "The fake: unknown." in (folder / "report.md").read_text()
    run = resolve(folder / "recipe.yaml")
    assert dump(run)["data"] == {"name": "data_free", "shape": [1, 8, 8], "classes": 10}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--objective", "sida"), "objective: rules are known for sid, sim, fgm, diff_instruct, dmd2, got SiDA"),
        (("--objective", "sdi"), "key 'objective' must be one of"),
        (("--cfg", "2"), "objective: guidance needs a teacher with a null condition"),
        (("--data", "{name: data_free, shape: [1, 4, 4]}"), "data: data_free has shape (1, 4, 4)"),
    ],
)
def test_a_mistake_is_told_before_anything_is_measured(
    distill: Command, teachers: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    told = distill("probe", teachers / "edm", "--folder", tmp_path / "probe", *options)
    assert (told.code, message in told.err) == (2, True), told.err
    assert not (tmp_path / "probe").exists()


def test_the_floor_is_the_better_of_two_ways(
    distill: Command, teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    folder, file = tmp_path / "run", tmp_path / "recipe.yaml"
    file.write_text(to_yaml(recipe(teachers / "edm", images=16, data="digits", health={"every": 0})))
    assert distill("train", file, "--folder", folder).code == 0
    told = distill("floor", folder, "--pairs", "8", "--samples", "64")
    assert told.code == 0, told.err
    found = json.loads((folder / "floor.json").read_text())
    assert found["floor"] == min(found["regression"], found["adversarial"])
    assert (found["images"], found["samples"]) == (16, 64)
    for way in ("regression", "adversarial"):  # each is a run, which can be looked at
        trained = load_trained(folder / "floor" / way)
        assert trained.images == 16
        assert trained.evaluate(64)["student"]["frechet"] == found[way]
    assert (
        len(list((tmp_path / "cache" / "evaluations").iterdir())) == 1
    )  # the teacher's numbers, once for all three runs
    again = distill("floor", folder, "--pairs", "8", "--samples", "64")  # nothing trains a second time
    assert again.code == 0 and json.loads((folder / "floor.json").read_text()) == found
