"""Limits of the fields of a recipe's dataclasses."""

from collections.abc import Callable
from functools import partial
from typing import Any

from distill.errors import UserError


def require(owner: object, *names: str, rule: str, holds: Callable[[Any], bool]) -> None:
    """Raise UserError unless the rule holds for each of these fields that is not None."""
    for name in names:
        if (value := getattr(owner, name)) is not None and not holds(value):
            raise UserError(f"{name}: must be {rule}, got {value}")


positive = partial(require, rule="positive", holds=lambda value: value > 0)
not_negative = partial(require, rule="at least 0", holds=lambda value: value >= 0)
