"""A mistake in a recipe or an override is one line that names the file or the command line. Nothing is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.objectives import OBJECTIVES
from tests.launch.conftest import Command
from tests.launch.test_mistakes import Write, mistake, untouched
from trainers.recipe.shipped import shipped_recipes

KEYS: list[tuple[list[str], str]] = [
    (["batchsize=8"], "unknown key 'batchsize' (did you mean 'batch_size'?)"),
    (["lr=1e-4"], "unknown key 'lr' (did you mean 'generator.lr' or 'fake.lr'?)"),
    (["generator.rank=4"], "unknown key 'generator.rank' (did you mean 'generator.lora.rank' or 'fake.lora.rank'?)"),
    (["colour=red"], "unknown key 'colour'; docs/recipes.md lists the keys"),
    (["objective.alfa=1"], "unknown key 'objective.alfa' (did you mean 'objective.alpha'?); allowed: fake_times,"),
    (["batch_size=many"], "key 'batch_size' must be an integer, got 'many'"),
    (["reuse_samples=1"], "key 'reuse_samples' must be true or false or 'all', got 1"),
    (["generator.lr=fast"], "key 'generator.lr' must be a number, got 'fast'"),
    (
        ["objective=sit"],
        f"key 'objective' must be one of sim, sid, ... ({len(OBJECTIVES)} in all, which docs/objectives/README.md"
        " lists) or your own 'module:Class', alone or as",
    ),
    (
        ["objective=no.such:Thing"],
        "key 'objective': cannot import 'no.such:Thing': there is no such module on the Python path",
    ),
    (
        ["data=digit"],
        "key 'data' must be one of digits, images, prompts, mixture, data_free, object or your own 'module:Class'",
    ),
    (["teacher=null"], "key 'teacher' must be a string, got None"),
]


@pytest.mark.parametrize(("overrides", "message"), KEYS, ids=[keys[0][0] for keys in KEYS])
def test_a_key(overrides: list[str], message: str, distill: Command, recipe_file: Write, tmp_path: Path) -> None:
    file = recipe_file()
    line = mistake(distill("train", file, *overrides, "--folder", tmp_path / "run"))
    assert line.startswith(f"command line: {message}") and len(line) < 300
    assert untouched(tmp_path / "run")


def test_a_key_of_the_file(distill: Command, recipe_file: Write, tmp_path: Path) -> None:
    """The line names the file, also where another key is on the command line, or where two keys do not agree."""
    file = recipe_file(lr=1)
    line = mistake(distill("train", file, "seed=1"))
    assert line == f"{file}: unknown key 'lr' (did you mean 'generator.lr' or 'fake.lr'?)"
    line = mistake(distill("train", recipe_file(), "micro_batches=3", "--folder", tmp_path / "run"))
    assert line == f"{file}: micro_batches: 3 must divide batch_size 8" and untouched(tmp_path / "run")


def test_an_objective_gets_its_nearest_name(distill: Command, recipe_file: Write) -> None:
    assert mistake(distill("train", recipe_file(), "objective=diff-instruct")).endswith(
        "got 'diff-instruct' (did you mean 'diff_instruct'?)"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.alpha", "override 'objective.alpha' must look like key=value, such as objective.alpha=1.0"),
        ("images.of=3", "override 'images.of=3': 'images' is 96, it has no keys"),
        ("seed=[1", "override 'seed=[1': line 1: expected ',' or ']', but got '<stream end>'"),
    ],
)
def test_an_override(override: str, message: str, distill: Command, recipe_file: Write) -> None:
    assert mistake(distill("train", recipe_file(), override)) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "line 2: duplicate key 'name'"),
        ("name: [a\n", "line 2: expected ',' or ']', but got '<stream end>'"),
        ("", "must be a mapping, got None"),
        ("name: a\nimages: 8\nnetwork: {}\n", "missing key 'batch_size': it must be an integer"),
    ],
)
def test_a_recipe_file(text: str, message: str, distill: Command, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    assert mistake(distill("train", file)) == f"{file}: {message}"


def test_several_mistakes_have_a_line_each(distill: Command, recipe_file: Write, tmp_path: Path) -> None:
    """Those of the file and of the command line, with the exit code of one."""
    file = recipe_file(lr=1, seed="x")
    refused = distill("train", file, "generator.warmpu=3", "--folder", tmp_path / "run")
    assert (refused.code, refused.out) == (2, "") and untouched(tmp_path / "run")
    assert refused.err.splitlines() == [
        "distill: 3 mistakes:",
        f"  {file}: unknown key 'lr' (did you mean 'generator.lr' or 'fake.lr'?)",
        "  command line: unknown key 'generator.warmpu' (did you mean 'generator.warmup'?)",
        f"  {file}: key 'seed' must be an integer, got 'x'",
    ]


def test_an_unknown_recipe(distill: Command) -> None:
    line = mistake(distill("train", "digit_sid"))
    shipped = (
        f"digits_sid, digits_sida, digits_sid2a, ... ({len(shipped_recipes())} in all, which `distill recipes` lists)"
    )
    assert line == f"recipe: no file and no shipped recipe 'digit_sid'; shipped: {shipped}"
    assert mistake(distill("recipes", "digit_sid")) == line
    assert mistake(distill("train", "nowhere/file.yaml")).startswith("recipe: no file and no shipped recipe 'nowhere/")
