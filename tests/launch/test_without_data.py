"""What a run has made is sampled, exported and averaged without its data, its pairs and its caches."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

import trainers
from distill.teachers import save_denoiser
from tests.launch.conftest import Command, Result
from tests.pipelines import pipelines
from tests.tiny import fit_run, recipe, teacher_recipe, tiny_denoiser
from trainers.data import Images, Prompts

__all__ = ["pipelines"]

POWER_EMA = {"stds": [0.1, 0.2], "snapshot_every": 8}
SHORT: dict[str, Any] = {"images": 16, "checkpoint_every": 16, "samples_every": 16, "power_ema": POWER_EMA}


def write_images(folder: Path) -> dict[str, Any]:
    """Write 20 pictures of 8x8 grey pixels in ten classes, and return the `data` of a recipe."""
    random = np.random.default_rng(0)
    for number in range(20):
        (place := folder / f"class_{number % 10}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(place / f"{number}.png")
    return {"name": "images", "path": str(folder), "resolution": 8, "mode": "L"}


@pytest.fixture
def forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Train a run of a recipe, and delete its data and all caches; from then on opening data is an error."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")

    def refuse(data: object) -> None:
        raise AssertionError("the data were opened")

    def train(settings: dict[str, Any]) -> Path:
        fit_run(settings, tmp_path / "run")
        for place in (Path(settings["data"]["path"]), tmp_path / "datasets", tmp_path / "cache"):
            place.unlink() if place.is_file() else shutil.rmtree(place, ignore_errors=True)
        for kind in (Images, Prompts):
            monkeypatch.setattr(kind, "load", refuse)
        return tmp_path / "run"

    return train


def works(result: Result) -> None:
    assert result.code == 0, result.err


@pytest.mark.parametrize("classes", [10, 0])
def test_a_distillation_of_images(
    classes: int, distill: Command, tmp_path: Path, forgotten: Callable[..., Path]
) -> None:
    """SiDA sees real images, so that the run needed all of its data to train."""
    save_denoiser(tiny_denoiser(num_class_embeds=classes or None), tmp_path / "teacher")
    data = {**write_images(tmp_path / "pictures"), **({} if classes else {"label_column": None})}
    objective = {"name": "sida", "generator_from": 0}
    run = forgotten(recipe(tmp_path / "teacher", objective=objective, data=data, **SHORT))
    works(distill("ema", run, "--std", 0.15))
    for which in ("last", "posthoc/0.15"):
        works(distill("sample", run, "--count", 4, "--which", which))
        works(distill("export", run, "--which", which))
        works(distill("export", run, "--format", "safetensors", "--which", which))
    works(distill("sample", run, "--count", 2, "--teacher"))
    if classes:
        works(distill("sample", run, "--count", 2, "--label", 3))


def test_a_teacher_and_data_that_have_moved(distill: Command, tmp_path: Path) -> None:
    """Each command takes their places, and nothing else that training had."""
    save_denoiser(tiny_denoiser(), tmp_path / "teacher")
    run = tmp_path / "run"
    fit_run(recipe(tmp_path / "teacher", data=write_images(tmp_path / "pictures"), **SHORT), run)
    before = (run / "run.yaml").read_bytes()
    (tmp_path / "teacher").rename(tmp_path / "cwd" / "moved")
    (tmp_path / "pictures").rename(tmp_path / "cwd" / "set")
    lost = f"distill: teacher: no folder '{tmp_path}/teacher'; if it has moved, add teacher=FOLDER\n"
    for command in (["ema", run, "--std", 0.15], ["sample", run], ["export", run], ["evaluate", run]):
        result = distill(*command)
        assert (result.code, result.err) == (2, lost)
        works(distill(*command, "teacher=moved", "data.path=set", "evaluation={components: 4}"))
    works(distill("export", run, "elsewhere", "teacher=moved"))
    assert Path("elsewhere/model_index.json").is_file() and not Path("teacher=moved").exists()
    loaded = trainers.load(run, teacher="moved", data={"path": "set"})
    assert loaded.sample(2).isfinite().all() and loaded.dataset.count == 20
    assert (run / "run.yaml").read_bytes() == before


def test_what_a_trained_run_does_not_take(student: Path, teachers: Path, distill: Command) -> None:
    for change, key in (("objective.alpha=0.5", "objective.alpha: 1.2 -> 0.5"), ("entry.nsr=3", "entry.nsr: ")):
        result = distill("sample", student, change)
        assert result.code == 2 and f"'{student}': {key}" in result.err, result.err
        keys = "cache, data.path, evaluation, pairs.folder, precision, sampler, start, teacher"
        allowed = f"can be changed here: {keys}"
        assert result.err.endswith(f": {allowed}\n") and result.err.count("\n") == 1
    result = distill("sample", student, f"teacher={teachers}/null")
    assert result.code == 2 and "was trained from another teacher than is now in" in result.err
    assert distill("sample", student, "which=best").err.startswith("distill: arguments: unknown key 'which'")


def test_a_teacher(distill: Command, tmp_path: Path, forgotten: Callable[..., Path]) -> None:
    run = forgotten(teacher_recipe(data=write_images(tmp_path / "pictures"), **SHORT))
    works(distill("ema", run, "--std", 0.15))
    for which in ("last", "posthoc/0.15"):
        works(distill("sample", run, "--count", 4, "--which", which))


def test_a_distillation_of_prompts(
    distill: Command, tmp_path: Path, forgotten: Callable[..., Path], pipelines: Callable[[str], Path]
) -> None:
    """Without prompts on the command line a picture shows those of the recipe, which are gone."""
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    data = {"name": "prompts", "path": str(tmp_path / "prompts.txt")}
    changes = {**SHORT, "objective": "diff_instruct", "entry": {"t": 625}, "cache": str(tmp_path / "cache")}
    run = forgotten(recipe(pipelines("sd15"), data=data, **changes))
    works(distill("ema", run, "--std", 0.15))
    for which in ("last", "posthoc/0.15"):
        works(distill("sample", run, "--prompt", "a hat", "--which", which))
        works(distill("export", run, "--which", which))
    with pytest.raises(AssertionError, match="the data were opened"):
        distill("sample", run)
    assert not (tmp_path / "cache").exists()
