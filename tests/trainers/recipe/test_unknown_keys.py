"""An unknown key that is the tail of known ones names them, inside the classes that the recipe chooses."""

from __future__ import annotations

from typing import Any

import pytest

from tests.trainers.recipe.test_config import ELSEWHERE, Run, refusal
from trainers.recipe.strict_yaml import build


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"lr": 1}, "unknown key 'lr' (did you mean 'fake.lr' or 'generator.lr'?)"),
        ({"betas": 1}, "unknown key 'betas' (did you mean 'fake.betas' or 'generator.betas'?)"),
        (
            {"generator": {"high": 1, "lr": 1}, "times": {"name": "ramp"}, "fake_times": {"name": "ramp"}},
            "unknown key 'generator.high' (did you mean 'times.high' or 'fake_times.high'?); allowed: lr, betas, extra",
        ),
        ({"high": 1}, f"unknown key 'high'{ELSEWHERE}"),  # of a class that is not chosen
    ],
)
def test_the_keys_that_end_in_it_are_named(data: dict[str, Any], message: str) -> None:
    assert refusal(build, Run, {"batch_size": 1, **data}, "digits.yaml") == f"digits.yaml: {message}"


def test_the_place_may_depend_on_the_key() -> None:
    data = {"batch_size": 1, "lr": 1}
    assert refusal(build, Run, data, "the key {}".format) == (
        "the key lr: unknown key 'lr' (did you mean 'fake.lr' or 'generator.lr'?)"
    )
