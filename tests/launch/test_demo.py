"""The demo, from the weights that the package ships to the pictures, the export and the report."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import trainers
from distill.errors import UserError
from launch.commands import demo as command
from launch.commands.demo import SHIPPED, copy_shipped, demo
from tests.launch.conftest import Command
from tests.tiny import ROOT
from trainers.recipe.load import load_run
from trainers.recipe.strict_yaml import load_yaml

MEBI = 2**20


def test_it_is_small_and_in_the_package() -> None:
    files = [file for file in SHIPPED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 5 * MEBI
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["launch"]
    assert {file for glob in data for file in (ROOT / "launch").glob(glob)} >= set(files)


@pytest.mark.parametrize(("name", "folder"), [("demo_sid", "run")])
def test_the_shipped_run_is_of_the_shipped_recipe(name: str, folder: str) -> None:
    recipe = load_yaml(ROOT / "configs" / f"{name}.yaml")
    run = load_yaml(SHIPPED / folder / "run.yaml")
    assert {key: run[key] for key in ("name", "images", "batch_size", "precision", "teacher")} == {
        key: recipe[key] for key in ("name", "images", "batch_size", "precision", "teacher")
    }
    assert run["objective"]["alpha"] == recipe["objective"]["alpha"] and run["data"]["path"] == recipe["data"]["path"]


def test_student_and_teacher_draw_what_they_are_asked_for(tmp_path: Path) -> None:
    """Both match their labels, by shapes that tell trousers from shoes and bags: rows of light pixels."""
    copy_shipped(tmp_path / "demo")
    trained = trainers.load(tmp_path / "demo" / "run", "best")
    labels = torch.arange(10).repeat(4)
    student, teacher = (
        trained.sample(40, label=labels.tolist()),
        trained.sample(40, label=labels.tolist(), teacher=True),
    )
    light = [(images > 0).float().mean((1, 2, 3)) for images in (student, teacher)]
    for shares in light:
        trousers, coats, bags = (float(shares[labels == label].mean()) for label in (1, 4, 8))
        assert trousers < coats and 0.1 < trousers < 0.5 and bags > 0.25
    assert float((light[0] - light[1]).abs().mean()) < 0.1


def test_the_demo_leaves_pictures_a_pipeline_and_a_report(
    tmp_path: Path, distill: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "SECONDS", 0.0)
    folder = tmp_path / "demo"
    done = distill("demo", folder)
    assert done.exit_code == 0, done.output
    assert "images of SiD" in done.output and "ratio" in done.output and "seconds" in done.output
    picture = np.asarray(Image.open(folder / "side_by_side.png"))
    assert picture.std() > 40
    report = (folder / "run" / "report.html").read_text()
    assert "demo_sid" in report and report.count("data:image/png;base64,") >= 10
    assert (folder / "export" / "model_index.json").is_file()
    assert load_run(folder / "run").teacher == str(folder / "teacher")  # type: ignore[union-attr]
    with pytest.raises(UserError, match=rf"^demo: '{folder}' exists already; name another folder, or remove it$"):
        demo(folder)
