"""Runs on pictures of several sizes: networks see each of them, resumes are exact, and plans are of the largest."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from distill.errors import UserError
from distill.teachers.families import FAMILIES
from tests.families import TEACHERS, fine_tuning, recipe
from tests.tiny import experiment, fit_run, once, teacher_recipe
from tests.trainers.interrupted import assert_same, fit, interrupted
from trainers.data import Images
from trainers.plan.trace import plan
from trainers.recipe.run import Run
from trainers.runs.classifier import ClassifierRun, split
from trainers.runs.load import load_trained

SIDES = [(16, 16), (16, 32), (32, 16)]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture(scope="session")
def teacher(shared: Path) -> Callable[[str], Path]:
    return lambda name: once(shared, f"teacher_{name}", TEACHERS[name])


def data(work: Path, scale: int = 1, **changes: Any) -> dict[str, Any]:
    """Write 12 pictures with captions, four of each aspect, and return them as the data of a recipe."""
    folder = work / "pictures"
    folder.mkdir(exist_ok=True)
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)):
        height, width = SIDES[number % 3]
        Image.fromarray(pixels[:height, :width]).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}")
    buckets = [[scale * side for side in sides] for sides in SIDES]
    settings = {"resolution": buckets[0][0], "buckets": buckets[1:], "prompt_column": "text"}
    return {"name": "images", "path": str(folder), **settings, **changes}


def settings(name: str, objective: Any, teacher: Path, work: Path, **changes: Any) -> dict[str, Any]:
    """Return a recipe of six updates of a tiny teacher, two of each size."""
    return recipe(
        name,
        objective,
        teacher,
        work,
        **{"data": data(work, 2 if name == "sana" else 1), "images": 24, "checkpoint_every": 12, **changes},
    )


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return the shapes of the batches that networks of families will be called with, in their order."""
    shapes: list[tuple[int, ...]] = []
    for cls in set(FAMILIES.values()):
        monkeypatch.setattr(cls, "forward", _noted(cls.forward, shapes))
    return shapes


def _noted(forward: Any, shapes: list[tuple[int, ...]]) -> Any:
    def noted(self: Any, x: torch.Tensor, *rest: Any) -> Any:
        shapes.append(tuple(x.shape))
        return forward(self, x, *rest)

    return noted


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("sdxl", {"name": "sida", "adversarial_from": 0, "generator_from": 0}),
        ("sd15", {"name": "dmd2"}),
        ("sd3", {"name": "dmd2"}),
        ("flux", "fgm"),
        ("pixart_sigma", {"name": "dmd2"}),
        ("sana", {"name": "realuid"}),
    ],
)
def test_families_train_and_resume_on_buckets(
    name: str,
    objective: Any,
    teacher: Callable[[str], Path],
    seen: list[tuple[int, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = settings(name, objective, teacher(name), tmp_path)
    straight = fit(run, tmp_path / "straight")
    assert straight.state.players["generator"].counters()["skipped"] == 0
    height, width = straight.dataset.shape[1:]
    shapes = {shape[2:] for shape in seen if len(shape) == 4 and shape[0] == 4}
    assert shapes == {(height, width), (height, 2 * width), (2 * height, width)}
    interrupted(run, tmp_path / "resumed", 12, monkeypatch)
    fit(run, tmp_path / "resumed", resume=True)
    assert_same(tmp_path / "straight", tmp_path / "resumed")
    assert load_trained(tmp_path / "straight").sample(2).shape[2:] == (straight.source.shape[1:])


def test_a_teacher_is_fine_tuned_on_buckets(
    teacher: Callable[[str], Path], seen: list[tuple[int, ...]], tmp_path: Path
) -> None:
    run = fine_tuning("sdxl", teacher("sdxl"), tmp_path, data=data(tmp_path), images=24)
    fit_run(run, tmp_path / "run")
    assert {shape[2:] for shape in seen if shape[0] == 4} >= {(8, 8), (8, 16), (16, 8)}


def test_prompts_alone_have_no_sizes(teacher: Callable[[str], Path], tmp_path: Path) -> None:
    """An objective without real images takes the sizes and the prompts of the pictures, and encodes no picture."""
    session = fit_run(settings("sd15", "sid", teacher("sd15"), tmp_path), tmp_path / "run")
    assert session.dataset.read is None and not list((tmp_path / "cache").glob("*latents*"))
    shapes = [tuple(session.batches.micro("generator", first, 0).noise.shape[2:]) for first in (0, 4, 8)]
    assert sorted(shapes) == [(8, 8), (8, 16), (16, 8)]


def test_a_plan_is_of_the_largest_size(teacher: Callable[[str], Path], tmp_path: Path) -> None:
    """A size of twice the pixels needs the memory of a run that has this size alone."""
    run = cast(Run, experiment(settings("sd15", "sid", teacher("sd15"), tmp_path)))
    alone = replace(run, data=replace(run.data, buckets=()))  # type: ignore[type-var,call-arg]
    wide = tmp_path / "wide"
    wide.mkdir()
    for part in teacher("sd15").iterdir():
        (wide / part.name).symlink_to(part)
    (wide / "distill.json").write_text(json.dumps({"resolution": [16, 32]}))
    largest = plan(replace(alone, teacher=str(wide)), 1)
    assert plan(run, 1).peaks == largest.peaks != plan(alone, 1).peaks


def test_what_is_refused_before_training(teacher: Callable[[str], Path], tmp_path: Path) -> None:
    def refusal(name: str, **changes: Any) -> str:
        with pytest.raises(UserError) as caught:
            fit_run(settings(name, "sid", teacher(name), tmp_path, **changes), tmp_path / "run")
        return str(caught.value)

    odd, other = {**data(tmp_path), "buckets": [[18, 34]]}, data(tmp_path, 2)
    assert refusal("pixart_sigma", data=odd) == "data.buckets: PixArt takes multiples of 4 pixels alone"
    assert refusal("sd15", data=other).startswith(
        "data.resolution: makes samples of shape (4, 16, 16), the teacher's are"
    )
    evaluation = {"every": 4, "samples": 4}
    assert refusal("sd15", evaluation=evaluation) == (
        "evaluation: the images of pictures are in buckets, of several sizes; name evaluation.reference, or set"
        " evaluation.every to 0"
    )
    labelled = {**data(tmp_path), "prompt_column": None, "label_column": None, "resolution": 8, "buckets": [[8, 16]]}
    line = "data.buckets: EDMNet takes samples of one size alone"
    assert refusal("edm", data=labelled) == line


def test_labelled_pictures_have_one_size(tmp_path: Path) -> None:
    folder = Path(data(tmp_path)["path"])
    for number in range(12):
        (folder / str(number % 2)).mkdir(exist_ok=True)
        (folder / f"{number}.png").rename(folder / str(number % 2) / f"{number}.png")
    labelled = Images(str(folder), resolution=8, buckets=((8, 16),))
    with pytest.raises(UserError, match=r"^data\.buckets: UNet takes samples of one size alone$"):
        fit_run(teacher_recipe(data={"name": "images", **asdict(labelled)}), tmp_path / "fresh")
    with pytest.raises(UserError, match=r"^data: a classifier takes images of one size, pictures is in buckets$"):
        split(ClassifierRun(name="classifier", images=8, data=labelled), labelled.load())
