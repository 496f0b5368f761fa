"""`distill keys`: a line and a meaning for each key, or a table."""

from __future__ import annotations

from tests.launch.conftest import Command
from tests.launch.test_mistakes import mistake
from trainers.recipe.keys import markdown_of_keys, recipe_keys


def test_keys_below_a_prefix(distill: Command) -> None:
    printed = distill("keys", "ema")
    assert printed.code == 0
    assert "\nema.half_life = 500000  [a number]\n    In images; 0 turns the average off.\n" in printed.out
    every = [line.split()[0] for line in distill("keys").out.splitlines() if not line.startswith(" ")]
    assert every == [key.name for key in recipe_keys()]


def test_keys_as_markdown(distill: Command) -> None:
    assert distill("keys", "generator", "--markdown").out == markdown_of_keys(recipe_keys("generator")) + "\n"


def test_no_such_key(distill: Command) -> None:
    assert mistake(distill("keys", "emma")) == "keys: no key of a recipe is or begins with 'emma'; the nearest are ema"
