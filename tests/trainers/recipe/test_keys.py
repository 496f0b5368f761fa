"""The list of a recipe's keys, which is read from the dataclasses: complete, explained, with true defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from distill.errors import UserError
from distill.objectives import OBJECTIVES
from distill.objectives.dmd import DMD
from distill.objectives.objective import Objective
from distill.samplers import SAMPLERS
from trainers.recipe import keys
from trainers.recipe.keys import REQUIRED, Key, markdown_of_keys, meaning_of, recipe_keys
from trainers.recipe.load import build_experiment
from trainers.recipe.run import Run
from trainers.recipe.strict_yaml import known_keys
from trainers.recipe.teacher_run import TeacherRun
from trainers.recipe.yaml_text import parse

EVERY = recipe_keys()
MINIMUM: dict[str, Any] = {"name": "n", "images": 8, "batch_size": 4, "teacher": "t", "objective": "sid"}


def key(name: str) -> Key:
    (found,) = [one for one in EVERY if one.name == name]
    return found


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.name)
def test_every_key_has_a_meaning(one: Key) -> None:
    """A field whose class has neither an entry under `Attributes:` nor a comment for it fails here."""
    assert len(one.meaning.split()) >= 3, f"{one.name}: say in a comment or a docstring what it means"
    assert one.meaning.endswith((".", ".)")) and one.type


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A group.

    Attributes:
        told: The first value,
            on two lines.
        both: The second value.
        anew: The third value.

    Raises:
        UserError: Never.
    """

    told: int = 0
    both: int = 0  # five of the paper
    # Not of this
    # field alone
    above: int = 0  # and beside

    # a comment that stands apart

    silent: int = 0
    anew: int = 0  # of the parent


@dataclass(frozen=True, kw_only=True)
class Child(Parent):
    """A group with a field of its own."""

    anew: int = 1  # Here. It has two sentences
    beside: int = 0  # images; 0 for none


def test_meanings_come_from_docstrings_and_comments() -> None:
    expected = {
        "told": "The first value, on two lines.",
        "both": "The second value (five of the paper).",
        "above": "Not of this field alone and beside.",
        "silent": "",
        "anew": "The third value. Here. It has two sentences.",
        "beside": "Images; 0 for none.",
    }
    assert {name: meaning_of(Child, name) for name in expected} == expected


def test_the_list_is_complete() -> None:
    """Every key of a run of each kind is there, and every kind of objective and sampler with its own keys."""
    for name in {*known_keys(Run, MINIMUM), *known_keys(TeacherRun)}:
        assert recipe_keys(name)
    for kind in OBJECTIVES:
        objective = {"name": kind, "objective": "sid", "reward": "hps"}
        for name in known_keys(Run, {**MINIMUM, "objective": objective}):
            assert recipe_keys(name)
    kinds = {one.name for one in EVERY if not one.default}
    assert kinds >= {f"objective.{name}" for name in OBJECTIVES} | {f"sampler.{name}" for name in SAMPLERS}
    names = [one.name for one in EVERY]
    assert len(set(names)) == len(names)


def test_some_keys_in_full() -> None:
    assert key("ema.half_life") == Key(
        "ema.half_life", "a number", "500000", "In images; 0 turns the average off.", "ema.half_life"
    )
    assert key("objective.dmd.fake_times") == Key(
        "objective.dmd.fake_times",
        "a kind of times",
        "karras",
        "The law of the times at which the fake trains (the whole ramp).",
        "objective.fake_times",
    )
    assert key("objective.sid.times").default == "{name: karras, upto: 0.8}"
    assert key("teacher").type == "a path" and key("teacher").default == REQUIRED
    assert key("fake_updates").type == "an integer or auto"
    assert key("generator.dropout").default == "'off'"  # as YAML: a bare off is false
    assert (key("trains").type, key("trains").default) == ("generator or teacher", "generator or teacher")
    assert key("optimizer").default == "{lr: 0.001, betas: [0.9, 0.99]}"
    assert key("data").type == "one of digits, images, prompts, mixture, data_free, object, or your own 'module:Class'"


def test_defaults_are_those_that_a_recipe_gets() -> None:
    """Spelled out as the list prints them, they leave a recipe as it is. 'name' and its like are required."""
    run = build_experiment(MINIMUM, "x")
    spelled = {
        one.name: parse(one.default, one.name)
        for one in EVERY
        if "." not in one.name and one.default != REQUIRED and one.name in known_keys(Run) and one.name != "trains"
    }
    assert len(spelled) > 30
    assert build_experiment({**spelled, **MINIMUM}, "x") == run


def test_a_prefix_selects() -> None:
    assert [one.name for one in recipe_keys("ema")] == ["ema", "ema.half_life", "ema.ramp_up"]
    assert [one.name for one in recipe_keys("objective.alpha")] == ["objective.sid.alpha", "objective.sida.alpha"]
    names = ("alpha", "times", "weight", "scale", "uncertainty")
    sid = [one.name for one in recipe_keys("objective.sid")]
    assert sid == ["objective.sid", *(f"objective.sid.{name}" for name in names)]
    low = ["times.karras.low", "times.uniform_flow.low"]
    assert [one.name for one in recipe_keys("objective.fake_times.low")] == low
    assert [one.name for one in recipe_keys("objective.objective.times.low")] == low
    with pytest.raises(UserError) as unknown:
        recipe_keys("lr")
    assert str(unknown.value) == (
        "keys: no key of a recipe is or begins with 'lr'; the nearest are generator.lr, fake.lr, optimizer.lr"
    )


def test_what_all_kinds_share_stands_once() -> None:
    """And again where a kind has another default of its own."""
    assert [one.name for one in EVERY if one.name.endswith(".evaluations")] == ["sampler.evaluations"]
    assert "fake_times" in vars(Objective)["__annotations__"] and "fake_times" in vars(DMD)["__annotations__"]
    names = {one.name for one in EVERY}
    assert {"objective.fake_times", "objective.dmd.fake_times"} <= names and "objective.sid.fake_times" not in names


def test_markdown() -> None:
    table = markdown_of_keys(
        [Key("a.b", "x or y", "1", "The mean |x|.", "a.b"), Key("a.c", "a kind of a", "", "C.", "a")]
    )
    assert table.splitlines() == [
        "| key | type | default | meaning |",
        "| --- | --- | --- | --- |",
        "| `a.b` | x or y | `1` | The mean \\|x\\|. |",
        "| `a.c` | a kind of a |  | C. |",
    ]


def test_a_key_without_a_meaning_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above is not blind: without comments some keys have no meaning."""
    monkeypatch.setattr(keys, "_comments", lambda cls: {})
    assert meaning_of(Run, "images") == "" and meaning_of(Run, "seed") == ""
