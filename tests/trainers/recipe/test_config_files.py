"""Files, overrides and differences of configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.errors import UserError
from tests.tiny import recipe
from trainers.recipe.load import resolve
from trainers.recipe.run import Run
from trainers.recipe.strict_yaml import diff, load_yaml, override, to_yaml


def refusal(function: Any, *args: Any) -> str:
    with pytest.raises(UserError) as caught:
        function(*args)
    return str(caught.value)


def test_numbers_in_a_file_keep_their_type_everywhere(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "a: 1e-4\nb: -2E+3\nc: 1.5e6\nd: .5e1\ne: 1e6\nf: '1e-4'\ng: 1e-4x\nh: 12\ni: 1.0e-05\nj: e5\nk: 1.e2\n"
    )
    expected = {"a": 1e-4, "b": -2e3, "c": 1.5e6, "d": 5.0, "e": 1e6, "f": "1e-4", "g": "1e-4x", "h": 12}
    expected |= {"i": 1e-5, "j": "e5", "k": 100.0}
    assert load_yaml(file) == expected
    assert yaml.safe_load(file.read_text())["a"] == "1e-4"  # why load_yaml reads by its own rule
    assert to_yaml({"b": 1e-5, "a": "1e5", "c": "é"}) == "b: 1.0e-05\na: '1e5'\nc: é\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: 1\nb: [1\nc: 2\n", "line 3: expected ',' or ']', but got ':'"),
        (b"a: 1\n  b: 2\n", "line 2: mapping values are not allowed here"),
        (b"a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", "line 5: duplicate key 'c'"),
        (b"a: 1\n'a': 2\n", "line 2: duplicate key 'a'"),
        (b"a: !thing 1\n", "line 1: could not determine a constructor for the tag '!thing'"),
        (b"a: 2024-13-45\n", "month must be in 1..12"),
        (b"a: 1\n---\nb: 2\n", "line 2: but found another document"),
        (
            b"a: \x00",
            'unacceptable character #x0000: special characters are not allowed in "<unicode string>", position 3',
        ),
        (b"a: \xff\n", "cannot be read: it is not UTF-8 text"),
        (b"- 1\n- 2\n", "must be a mapping, got [1, 2]"),
        (b"digits\n", "must be a mapping, got 'digits'"),
        (b"", "must be a mapping, got None"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_in_one_line(tmp_path: Path, text: bytes, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(text)
    assert refusal(load_yaml, file) == f"{file}: {message}"


def test_a_file_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "no.yaml"
    assert refusal(load_yaml, missing) == f"{missing}: cannot be read: No such file or directory"
    assert refusal(load_yaml, str(tmp_path)) == f"{tmp_path}: cannot be read: it is no regular file"


def test_merge_keys_and_equal_keys_of_different_groups_are_no_duplicates(tmp_path: Path) -> None:
    file = tmp_path / "good.yaml"
    file.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {<<: *a, x: 4}\nd: {1: a, '1': b}\n")
    expected = {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 4, "y": 2}, "d": {1: "a", "1": "b"}}
    assert load_yaml(file) == expected


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("seed=3", {"objective": "sid", "fake": {"lr": 1}, "none": None, "seed": 3}),
        ("objective.alpha=1.0", {"objective": {"name": "sid", "alpha": 1.0}, "fake": {"lr": 1}, "none": None}),
        ("objective.name=dmd", {"objective": {"name": "dmd"}, "fake": {"lr": 1}, "none": None}),
        ("objective=dmd", {"objective": "dmd", "fake": {"lr": 1}, "none": None}),
        ("fake.lr=1e-4", {"objective": "sid", "fake": {"lr": 1e-4}, "none": None}),
        (" fake . lr =2", {"objective": "sid", "fake": {"lr": 2}, "none": None}),
        ("none.a.b=[x, 1]", {"objective": "sid", "fake": {"lr": 1}, "none": {"a": {"b": ["x", 1]}}}),
        ("fake=", {"objective": "sid", "fake": None, "none": None}),
        ("none=a=b", {"objective": "sid", "fake": {"lr": 1}, "none": "a=b"}),
        ("none={x: {y: 1}}", {"objective": "sid", "fake": {"lr": 1}, "none": {"x": {"y": 1}}}),
    ],
)
def test_an_override_sets_one_key_of_a_copy(assignment: str, expected: dict[str, Any]) -> None:
    data = {"objective": "sid", "fake": {"lr": 1}, "none": None}
    assert override(data, [assignment]) == expected
    assert data == {"objective": "sid", "fake": {"lr": 1}, "none": None}


def test_overrides_are_made_in_order_and_apart_where_an_anchor_shares() -> None:
    assert override({}, ["a.b=1", "a.c=2", "a.b=3"]) == {"a": {"b": 3, "c": 2}}
    shared = {"lr": 1}
    assert override({"fake": shared, "generator": shared}, ["fake.lr=2"]) == {"fake": {"lr": 2}, "generator": {"lr": 1}}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("alpha", "override 'alpha' must look like key=value, such as objective.alpha=1.0"),
        ("=1", "override '=1' must look like key=value, such as objective.alpha=1.0"),
        ("a..b=1", "override 'a..b=1' must look like key=value, such as objective.alpha=1.0"),
        ("size.x=1", "override 'size.x=1': 'size' is 64, it has no keys"),
        ("fake.lr.x.y=1", "override 'fake.lr.x.y=1': 'fake.lr' is [1], it has no keys"),
        ("a=[1", "override 'a=[1': line 1: expected ',' or ']', but got '<stream end>'"),
        ("a={b: 1, b: 2}", "override 'a={b: 1, b: 2}': line 1: duplicate key 'b'"),
    ],
)
def test_a_bad_override_is_told_in_one_line(assignment: str, message: str) -> None:
    assert refusal(override, {"size": 64, "fake": {"lr": [1]}}, [assignment]) == message


def test_diff_names_each_change() -> None:
    old = {
        "objective": {"name": "sid", "alpha": 1.2, "gone": None},
        "a": 1,
        "tracking": [],
        "same": {"x": 1},
        "ema": {},
    }
    new = {
        "objective": {"name": "dmd", "alpha": 1.0, "new": "b"},
        "a": 1.0,
        "tracking": ["w"],
        "same": {"x": 1},
        "ema": 0,
    }
    assert diff(old, new) == [
        "objective.name: 'sid' -> 'dmd'",
        "objective.alpha: 1.2 -> 1.0",
        "objective.gone: None -> (absent)",
        "objective.new: (absent) -> 'b'",
        "tracking: [] -> ['w']",
        "ema: {} -> 0",
    ]
    assert diff(old, old) == []
    assert diff({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}) == ["a.b.c: 1 -> 2"]


def test_a_link_to_itself_is_left_to_its_reader(tmp_path: Path) -> None:
    """`Path.resolve` raises a RuntimeError at one."""
    (tmp_path / "loop").symlink_to("loop")
    run = resolve(recipe(str(tmp_path / "loop")))
    assert isinstance(run, Run) and run.teacher == str(tmp_path / "loop")


def test_a_folder_in_the_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "teacher").mkdir()
    run = resolve(recipe("~/teacher"))
    assert isinstance(run, Run) and run.teacher == str(tmp_path / "teacher")
    absent = resolve(recipe("~/absent"))
    assert isinstance(absent, Run) and absent.teacher == "~/absent"
