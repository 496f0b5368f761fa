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
from launch.commands.demo import RUN, SHIPPED, TEACHER, copy_shipped, demo
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


def test_the_shipped_run_is_of_the_shipped_recipe() -> None:
    recipe, run = load_yaml(ROOT / "configs" / f"{RUN}.yaml"), load_yaml(SHIPPED / RUN / "run.yaml")
    assert {key: run[key] for key in ("name", "images", "batch_size", "precision", "teacher")} == {
        key: recipe[key] for key in ("name", "images", "batch_size", "precision", "teacher")
    }
    assert run["objective"]["alpha"] == recipe["objective"]["alpha"] and run["data"]["path"] == recipe["data"]["path"]


def test_student_and_teacher_draw_what_they_are_asked_for(tmp_path: Path) -> None:
    """Sandals have fewer light pixels than trousers, and trousers fewer than coats."""
    copy_shipped(tmp_path / "demo")
    trained = trainers.load(tmp_path / "demo" / RUN, "best")
    labels = torch.arange(10).repeat(4)
    student, teacher = trained.sample(40), trained.sample(40, teacher=True)
    light = [(images > 0).float().mean((1, 2, 3)) for images in (student, teacher)]
    for shares in light:
        sandals, trousers, coats = (float(shares[labels == label].mean()) for label in (5, 1, 4))
        assert 0.05 < sandals < trousers < coats < 0.6
    assert float((light[0] - light[1]).abs().mean()) < 0.1


def test_the_demo_leaves_pictures_a_pipeline_and_a_report(
    tmp_path: Path, distill: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "SECONDS", 0.0)
    folder = tmp_path / "demo"
    done = distill("demo", folder)
    assert done.code == 0, done.err
    assert "images of SiD" in done.out and "ratio" in done.out and "seconds" in done.out
    picture = np.asarray(Image.open(folder / "side_by_side.png"))
    assert picture.std() > 40
    report = (folder / RUN / "report.html").read_text()
    assert "demo_sid" in report and report.count("data:image/") >= 10
    assert (folder / "export" / "model_index.json").is_file()
    assert load_run(folder / RUN).teacher == str(folder / TEACHER)  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"exists already; name another folder, or remove it$"):
        demo(folder)
