"""The places where runs are killed are there: `make test-faults` names them by text."""

from __future__ import annotations

import importlib
from functools import reduce
from typing import Any

import pytest

from tests.faults import caches, kills

PLACES = [*kills.TRAINING, *kills.SAVING, *kills.EVALUATING, *kills.RESUMING, *kills.STARTING, *kills.EXPORTING]
PLACES += caches.PICTURES


@pytest.mark.parametrize("place", sorted({place for place, _, _ in PLACES}))
def test_a_place_is_a_function(place: str) -> None:
    module, _, path = place.partition(":")
    found: Any = reduce(getattr, path.split("."), importlib.import_module(module))
    assert callable(found)
