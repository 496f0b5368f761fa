"""The key `dropout` of a player, whose value `off` is a boolean in YAML 1.1."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.errors import UserError
from tests.tiny import recipe
from trainers.recipe.load import build_experiment, resolve
from trainers.recipe.run import PlayerSettings, Run
from trainers.recipe.shipped import shipped_recipes
from trainers.recipe.strict_yaml import build, dump, load_yaml, to_yaml


@pytest.mark.parametrize("text", ["off", '"off"', "'off'", "teacher"])
def test_off_needs_no_quotes(text: str, tmp_path: Path) -> None:
    """Neither in a file nor on the command line, and the resolved recipe keeps it."""
    value = text.strip("'\"")
    (tmp_path / "fake.yaml").write_text(f"fake: {{dropout: {text}}}\n")
    assert build(PlayerSettings, load_yaml(tmp_path / "fake.yaml")["fake"]).dropout == value
    run = resolve(recipe("unused"), [f"fake.dropout={text}"])
    assert isinstance(run, Run) and (run.fake.dropout, run.generator.dropout) == (value, "off")
    (tmp_path / "run.yaml").write_text(to_yaml(dump(run)))
    assert build_experiment(load_yaml(tmp_path / "run.yaml"), "run.yaml") == run


@pytest.mark.parametrize("text", ["on", "student"])
def test_other_values_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"key 'fake.dropout' must be one of 'off', 'teacher' or a number, got "):
        resolve(recipe("unused"), [f"fake.dropout={text}"])


def test_a_number_needs_no_quotes() -> None:
    run = resolve(recipe("unused"), ["fake.dropout=0.1"])
    assert isinstance(run, Run) and run.fake.dropout == 0.1


def test_recipes_of_edm_alone_have_dropout() -> None:
    """That of the teacher; on AFHQ the authors' own."""
    for name, file in shipped_recipes().items():
        settings = {key: one for key, one in load_yaml(file).items() if key != "tiny"}
        if "objective" in settings:
            run = build_experiment(settings, name)
            of_edm = 0.05 if name.startswith("afhq64") else "teacher"
            expected = of_edm if file.parent.name == "edm" else "off"
            assert isinstance(run, Run) and run.generator.dropout == run.fake.dropout == expected, name
