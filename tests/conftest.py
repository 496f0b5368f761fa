"""Fixtures of all tests."""

from tests.pipelines import pipelines
from tests.tiny import shared

__all__ = ["pipelines", "shared"]
