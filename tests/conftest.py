"""Fixtures of all tests."""

from collections.abc import Iterator

import pytest

from distill.user_code import trusting
from tests.pipelines import pipelines
from tests.tiny import shared

__all__ = ["pipelines", "shared"]


@pytest.fixture
def trusted_code() -> Iterator[None]:
    """Let the code run that the folders of a test name."""
    with trusting(True):
        yield
