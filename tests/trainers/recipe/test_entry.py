"""How a recipe says where its generator enters the teacher's path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from distill import EDM, DiscreteVP, Flow, UserError
from distill.paths import Path as GaussianPath
from tests.tiny import experiment, recipe
from trainers.recipe.load import load_run
from trainers.recipe.run import Run
from trainers.recipe.strict_yaml import dump, to_yaml
from trainers.runs.open import open_run

ENTRIES: list[tuple[dict[str, Any], GaussianPath, tuple[float, float | None]]] = [
    ({}, EDM(), (2.5, None)),
    ({"nsr": 3.0}, Flow(), (0.75, None)),
    ({"nsr": 2.5, "scale": 1.0}, DiscreteVP(), (625, 1.0)),
    ({"t": 0.7}, Flow(), (0.7, None)),
    ({"t": 399, "scale": 1.0}, DiscreteVP(), (399, 1.0)),
    ({"preset": "sid_lsg_sd"}, DiscreteVP(), (625, None)),
    ({"preset": "dmd2_sdxl"}, DiscreteVP(), (399, 1.0)),
]


@pytest.mark.parametrize(("entry", "path", "expected"), ENTRIES)
def test_the_ways_to_say_an_entry(
    entry: dict[str, Any], path: GaussianPath, expected: tuple[float, float | None], tmp_path: Path
) -> None:
    run = experiment(recipe("unused", entry=entry))
    assert isinstance(run, Run) and run.entry.at(path) == pytest.approx(expected)
    (tmp_path / "run.yaml").write_text(to_yaml(dump(run)))
    assert load_run(tmp_path) == run


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"preset": "dmd2_sdxl"}, "entry.preset: 'dmd2_sdxl' is t = 399 on DiscreteVP, the teacher's path is EDM()"),
        ({"preset": "noise_flow"}, "entry.preset: 'noise_flow' is t = 1 on Flow, the teacher's path is EDM()"),
        ({"t": -1}, "generator: t = -1 is not a noisy time of the path EDM()"),
    ],
)
def test_an_entry_that_is_no_time_of_the_path(entry: dict[str, Any], message: str, teachers: Path) -> None:
    run = experiment(recipe(teachers / "edm", entry=entry))
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        open_run(run, 1, weights=False)
