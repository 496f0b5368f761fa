"""The changes that a resume refuses, in one line however many there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill.errors import UserError
from tests.tiny import experiment, recipe
from trainers.recipe.changes import accepted_changes
from trainers.recipe.strict_yaml import dump


def refusal(**changes: Any) -> str:
    before = dump(experiment(recipe("teacher")))
    with pytest.raises(UserError) as refused:
        accepted_changes({"recipe": before, "images": 8}, experiment(recipe("teacher", **changes)), Path("run"))
    return str(refused.value)


def test_a_few_changes_are_all_told() -> None:
    said = "seed: 0 -> 1, generator.eps: 1e-08 -> 1e-06: this would change what is trained;"
    assert (
        refusal(seed=1, generator={"lr": 1e-3, "eps": 1e-6}) == f"{said} --allow seed --allow generator.eps accepts it"
    )


def test_of_many_changes_some_are_told_and_the_groups_to_allow() -> None:
    player = {"lr": 1, "betas": [0, 0.5], "eps": 1, "weight_decay": 1, "warmup": 1}
    said = refusal(seed=1, generator=player, fake=player)
    some = "seed: 0 -> 1, generator.lr: 0.001 -> 1.0, generator.betas: [0.0, 0.999] -> [0.0, 0.5], ... (11 in all)"
    allow = "--allow seed --allow generator --allow fake accepts it"
    assert said == f"{some}: this would change what is trained; {allow}"
