"""A key whose value is a plain value or a group of keys."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from distill.errors import UserError
from trainers.recipe.strict_yaml import build, dump, known_keys


@dataclass(frozen=True)
class Table:
    low: float
    high: float = 2.0


@dataclass(frozen=True)
class Holder:
    weight: Literal["edm", "x0"] | Table | None = None
    warmup: int | Table = 0


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ({}, Holder()),
        ({"weight": "x0", "warmup": "1_000"}, Holder("x0", 1000)),
        ({"weight": {"low": 1}, "warmup": {"low": 3, "high": 4}}, Holder(Table(1.0), Table(3.0, 4.0))),
        ({"weight": Table(1.0)}, Holder(Table(1.0))),
        ({"weight": None}, Holder()),
    ],
)
def test_a_plain_value_and_a_group_are_both_read(given: dict[str, Any], value: Holder) -> None:
    assert build(Holder, given) == value
    assert build(Holder, dump(value)) == value


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weight": "edmm"}, "key 'weight' must be one of 'edm', 'x0' or a mapping or null, got 'edmm'"),
        ({"weight": {"high": 1}}, "missing key 'weight.low': it must be a number"),
        ({"weight": {"low": 1, "hihg": 1}}, "unknown key 'weight.hihg' (did you mean 'weight.high'?)"),
        ({"warmup": 1.5}, "key 'warmup' must be an integer or a mapping, got 1.5"),
    ],
)
def test_a_mistake_in_either_is_told(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        build(Holder, given)
    assert str(raised.value).startswith(message)


def test_the_keys_of_a_group_are_known_where_it_is_given() -> None:
    assert list(known_keys(Holder, {"weight": {"low": 1}})) == ["weight", "weight.low", "weight.high", "warmup"]
