"""The names in an error: all of a few, and of many the nearest ones with their number and where they are listed."""

from __future__ import annotations

import time

import pytest

from distill.errors import FEW, nearest, options

MANY = [f"block_{number}" for number in range(90)]


def test_a_few_names_are_all_shown() -> None:
    assert options([]) == "none"
    assert options(["a", "b", "a"], "c", "a page") == "a, b"
    assert options(range(FEW)) == "0, 1, 2, 3, 4, 5, 6, 7"


def test_of_many_the_nearest_are_shown() -> None:
    names = ["sid", "sida", "sim", *MANY]
    assert options(names, "SIDD", "`distill recipes`") == "sid, sida, ... (93 in all, which `distill recipes` lists)"
    assert options(MANY, "blok_77") == "block_77, block_7, block_87, ... (90 in all)"


def test_of_many_without_a_near_one_the_first_are_shown() -> None:
    assert options(MANY, "xyz") == options(MANY) == "block_0, block_1, block_2, ... (90 in all)"


def test_near_names_may_differ_in_case() -> None:
    assert nearest("BETAS", ["lr", "Betas", 3]) == ["Betas"] and nearest("q", ["lr"]) == []


@pytest.mark.parametrize("names", [["x" * 10**7] * 9, [f"{number}" * 200 for number in range(100_000)]])
def test_an_error_is_short_whatever_the_names_are(names: list[str]) -> None:
    """Names come from files too, so neither their length nor their number may cost much."""
    begin = time.process_time()
    assert len(options([*names, *MANY[:9]], "1" * 10**7)) < 1000
    assert time.process_time() - begin < 10
