"""An unknown key that is the tail of known ones names them, inside the classes that the recipe chooses."""

from __future__ import annotations

from typing import Any

import pytest

from tests.trainers.recipe.test_config import ELSEWHERE, NAMES, Run, refusal
from trainers.recipe.strict_yaml import build

RAMP = {"name": "ramp", "low": 1}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"lr": 1}, "unknown key 'lr' (did you mean 'fake.lr' or 'generator.lr'?)"),
        ({"betas": 1}, "unknown key 'betas' (did you mean 'fake.betas' or 'generator.betas'?)"),
        (
            {"generator": {"high": 1, "lr": 1}, "times": RAMP, "fake_times": RAMP},
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


def test_several_mistakes_are_told_at_once() -> None:
    """In the order of the groups. A missing key that a wrong one stands for is not told twice."""
    data = {"batchsize": 1, "generator": {"lr": "fast", "lrr": 1}, "times": {"name": "ramp"}, "fake_times": "rump"}
    assert refusal(build, Run, data, "digits.yaml").splitlines() == [
        "5 mistakes:",
        "  digits.yaml: unknown key 'batchsize' (did you mean 'batch_size'?)",
        "  digits.yaml: unknown key 'generator.lrr' (did you mean 'generator.lr'?); allowed: lr, betas, extra",
        "  digits.yaml: key 'generator.lr' must be a number, got 'fast'",
        "  digits.yaml: missing key 'times.low': it must be a number",
        f"  digits.yaml: key 'fake_times' must be one of {NAMES}, got 'rump' (did you mean 'ramp'?)",
    ]


def test_many_mistakes_are_counted() -> None:
    data = {"batch_size": 1, **{f"nothing_{number}": 1 for number in range(5_000)}}
    lines = refusal(build, Run, data, "x").splitlines()
    assert len(lines) == 12 and lines[0] == "5,000 mistakes:" and lines[-1] == "  and 4,990 more"
    assert lines[10] == f"  x: unknown key 'nothing_9'{ELSEWHERE}"
