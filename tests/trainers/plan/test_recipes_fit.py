"""The head of every paper's recipe says on how many GPUs of 80 GB it fits as shipped. The plan agrees."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from distill.rewards import ImageReward
from launch.commands.plan import HEADROOM
from tests.published_sizes import TEACHERS, image_reward_score
from tests.trainers.plan.test_plan import run_of
from trainers.plan.trace import plan
from trainers.recipe.load import resolve
from trainers.recipe.run import Run
from trainers.recipe.shipped import shipped_recipes
from trainers.recipe.strict_yaml import load_yaml

PAPERS = sorted(name for name, file in shipped_recipes().items() if "tiny" in load_yaml(file))
ROOM = (1 - HEADROOM) * 80e9
QUICK = "cifar10_sid"  # the others take minutes


def claimed(name: str) -> int:
    """The number of GPUs in the head of a recipe."""
    ((number,),) = [re.findall(r"^# Fits on (\d+) GPUs? of 80 GB", shipped_recipes()[name].read_text(), re.MULTILINE)]
    return int(number)


def shortened(run: Run) -> Run:
    """A run whose updates have the peak of those of `run`: with two micro-batches, and one update of the fake."""
    count = min(2, run.micro_batches)
    return replace(run, batch_size=run.batch_size // run.micro_batches * count, micro_batches=count, fake_updates=1)


@pytest.mark.parametrize("name", PAPERS)
def test_every_recipe_says_on_how_many_gpus_it_fits(name: str) -> None:
    gpus = claimed(name)
    assert gpus in (1, 2, 4, 8, 16, 32, 64)
    cast(Any, resolve(name)).check_world(gpus)


def test_a_shorter_update_has_the_same_peak(teachers: Path) -> None:
    """But for the losses of each. The second micro-batch is the largest, since it finds the gradients of the first."""
    runs = run_of(teachers, "sid", micro_batches=4), run_of(teachers, "dmd2", fake_updates=3, reuse_samples=True)
    for run in runs:
        assert shortened(run) != run
        assert plan(shortened(run), 2).peak.bytes == pytest.approx(plan(run, 2).peak.bytes, rel=1e-3)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == QUICK else pytest.mark.slow) for name in PAPERS]
)
def test_a_recipe_fits_on_what_it_says_and_on_no_less(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, gpus = cast(Run, resolve(name)), claimed(name)
    folder = tmp_path / Path(run.teacher).name
    TEACHERS[folder.name](folder)
    monkeypatch.setattr(ImageReward, "load", lambda self: image_reward_score())
    run = shortened(replace(run, teacher=str(folder)))
    assert plan(run, gpus).peak.bytes <= ROOM
    if gpus > 1:
        assert plan(run, gpus // 2).peak.bytes > ROOM
