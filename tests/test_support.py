"""docs/support.md says of every kind of teacher, objective and export what is so."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.families import TEACHERS
from tests.support import PAGE, ROWS, cell, page, read
from tests.trainers.runs.test_families import module_cache, teacher

pytestmark = pytest.mark.usefixtures("trusted_code")

__all__ = ["module_cache", "teacher"]

PAIRS = [(name, column) for name in TEACHERS for column in ROWS]


def test_the_page_has_every_teacher_objective_and_format() -> None:
    """`make support` writes it anew; nothing in it is written by hand."""
    text = PAGE.read_text()
    assert re.findall(r"^\|  \| (.*) \|$", text, re.MULTILINE) == [" | ".join(TEACHERS)] * 3
    cells = read(text)
    assert {*cells} == {*PAIRS} and page(cells) == text
    assert len({name for name, column in PAIRS if cells[name, column] == "yes"}) == len(TEACHERS)


@pytest.mark.parametrize(
    ("name", "column"),
    [("unet", "sid"), ("edm2", "guided"), ("dit", "lora"), ("own", "diffusers"), ("sana", "adapters")],
)
def test_the_page_is_right_here(name: str, column: str, teacher: Callable[[str], Path]) -> None:
    assert cell(name, column, teacher(name)) == read(PAGE.read_text())[name, column]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "column"), PAIRS)
def test_the_page_is_right(name: str, column: str, teacher: Callable[[str], Path]) -> None:
    assert cell(name, column, teacher(name)) == read(PAGE.read_text())[name, column]
