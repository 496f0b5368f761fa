"""YAML texts that would grow out of proportion are refused in one line, soon and in little memory."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import pytest

from distill.errors import UserError
from tests.limited import limited
from trainers.recipe.strict_yaml import load_yaml, override
from trainers.recipe.yaml_text import MAX_BYTES, MAX_DEPTH, MAX_VALUES, parse

DEEP = f"more than {MAX_DEPTH} levels of values inside values"
MANY = f"more than {MAX_VALUES:,} values, with those that aliases repeat"
DIGITS = "a number of more than 1000 digits"


def bomb(levels: int, width: int, key: str = "a") -> str:
    """Levels of lists, each of which repeats the level before."""
    lines = [f"{key}0: &a0 [{', '.join(['x'] * width)}]"]
    lines += [f"{key}{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


MERGES = "a0: &a0 {x: 1}\n" + "\n".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 9))
TEXTS = {
    "nine levels of nine": (bomb(9, 9), "line 6: " + MANY),
    "nine levels of nine in one known key": (f"objective:\n  {bomb(9, 9).replace(chr(10), chr(10) + '  ')}", MANY),
    "27 levels of two": (bomb(27, 2), "line 15: " + MANY),
    "27 levels of two in a known key": (bomb(27, 2, "images"), "line 15: " + MANY),
    "levels through aliases": (bomb(400, 1), f"line 32: more than {MAX_DEPTH} levels, through aliases"),
    "merges of merges": (MERGES, "line 6: " + MANY),
    "many aliases": ("a: &a 1\nb: [" + "*a, " * 120_000 + "]", "line 2: " + MANY),
    "a list in itself": ("name: &a [*a]", "line 1: *a stands inside its own value"),
    "a mapping in itself": ("name: &a\n  x: [1, {y: *a}]", "line 2: *a stands inside its own value"),
    "a mapping as its own key": ("&a {*a : 1}", "line 1: *a stands inside its own value"),
    "5,000 lists": ("name: " + "[" * 5_000 + "]" * 5_000, "line 1: " + DEEP),
    "5,000 lists without an end": ("name: " + "[" * 5_000, "line 1: " + DEEP),
    "5,000 mappings": ("{a: " * 5_000 + "1" + "}" * 5_000, "line 1: " + DEEP),
    "5,000 dashes": ("- " * 5_000 + "1", "line 1: " + DEEP),
    "5,000 keys as keys": ("? " * 5_000 + "1", "line 1: " + DEEP),
    "a million open lists": ("[" * 1_000_000, "line 1: " + DEEP),
    "indented groups": ("\n".join(" " * i + "a:" for i in range(1_000)), "line 33: " + DEEP),
    "many values": ("a: [" + "1, " * 300_000 + "]", "line 1: " + MANY),
    "many documents": ("---\n" * 200_000, MANY),
    "a number in base 60": ("a: 1" + ":1" * 400_000, "line 1: " + DIGITS),
    "a quoted number in base 60": ("a: !!int '1" + ":1" * 400_000 + "'", "line 1: " + DIGITS),
    "a fraction in base 60": ("a: 1" + ":1" * 400_000 + ".5", "line 1: " + DIGITS),
    "a million digits": ("a: " + "1" * 1_000_000, "line 1: " + DIGITS),
    "a key twice among many": (
        "".join(f"k{i}: 1\n" for i in range(30_000)) + "k7: 2\n",
        "line 30001: duplicate key 'k7'",
    ),
    "a long key twice": (f"{'x' * 900}: 1\n{'x' * 900}: 2\n", "line 2: duplicate key 'xxx"),
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_out_of_proportion_is_one_line(text: str) -> None:
    content, message = TEXTS[text]
    begin = time.process_time()
    with pytest.raises(UserError) as refused:
        parse(content, "a.yaml")
    assert time.process_time() - begin < 1
    (line,) = str(refused.value).splitlines()
    assert line.startswith("a.yaml: ") and message in line and len(line) < 400


def test_what_many_keys_take_grows_with_their_number(tmp_path: Path) -> None:
    """Four times the keys take about four times as long. Where each key looked at all others it would be sixteen."""
    file, seconds = tmp_path / "many.yaml", []
    for count in (5_000, 20_000):
        file.write_text("".join(f"key{i}: {i}\n" for i in range(count)))
        taken = []
        for _ in range(5):
            gc.collect()  # not while it is timed
            begin = time.process_time()
            assert load_yaml(file) == {f"key{i}": i for i in range(count)}
            taken.append(time.process_time() - begin)
        seconds.append(min(taken))
    assert seconds[1] / seconds[0] < 9


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: &a {x: [1, 2]}\nb: {<<: *a, y: *a}", {"a": {"x": [1, 2]}, "b": {"x": [1, 2], "y": {"x": [1, 2]}}}),
        ("a: " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1), None),
        ("a: [" + "1, " * (MAX_VALUES - 4) + "]", {"a": [1] * (MAX_VALUES - 4)}),
        ("a: " + "1" * 1_000, {"a": int("1" * 1_000)}),
        ("a: " + "1" * 1_000_000 + "x", {"a": "1" * 1_000_000 + "x"}),
        ("a: &a 1\na2: &b *a", "line 2: while parsing a node"),
        ("a: &a 1\n'b': [*a, \"*a\", '*a']", {"a": 1, "b": [1, "*a", "*a"]}),
        ("{a: {k: 1}, b: {k: 1}, c: [{k: 1}, {k: 1}]}", {"a": {"k": 1}, "b": {"k": 1}, "c": [{"k": 1}, {"k": 1}]}),
    ],
)
def test_the_limits_are_exact(text: str, value: object) -> None:
    if isinstance(value, str):
        with pytest.raises(UserError):
            parse(text, "x")
    else:
        assert value is None or parse(text, "x") == value
        parse(text, "x")


@pytest.mark.parametrize("long", [False, True])
def test_short_and_long_texts_are_read_alike(long: bool) -> None:
    """Long texts are read by another parser."""
    text = "a: 1e-4\nb: '1e5'\nc: 1.e2\nd: [yes, no, null, ~, 0x1f, 1_000, 12:30]\ne: 2024-01-01\nf: |\n  x\n  y\n"
    value = parse(text + ("#" * 20_000 if long else ""), "x")
    value["e"] = str(value["e"])
    words = [True, False, None, None, 31, 1000, 750]
    assert value == {"a": 1e-4, "b": "1e5", "c": 100.0, "d": words, "e": "2024-01-01", "f": "x\ny\n"}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (f"name={'[' * 5_000}", DEEP),
        (f"objective={{{bomb(9, 9).replace(chr(10), ', ')}}}", MANY),
        ("name=&a [*a]", "line 1: *a stands inside its own value"),
        (".".join("a" * 5_000) + "=1", f"more than {MAX_DEPTH} levels of keys"),
        ("images=1" + ":1" * 50_000, DIGITS),
        ("x" * 100_000, "must look like key=value"),
    ],
)
def test_an_override_out_of_proportion_is_one_line(assignment: str, message: str) -> None:
    begin = time.process_time()
    with pytest.raises(UserError) as refused:
        override({"objective": "sid"}, [assignment])
    assert time.process_time() - begin < 1
    (line,) = str(refused.value).splitlines()
    assert message in line and len(line) < 400


def test_a_file_that_is_no_recipe_is_not_read(tmp_path: Path) -> None:
    """A FIFO would wait for a writer, and a device has no end."""
    os.mkfifo(tmp_path / "fifo.yaml")
    for file in (tmp_path / "fifo.yaml", Path("/dev/zero")):
        with pytest.raises(UserError, match=f"^{file}: cannot be read: it is no regular file$"):
            load_yaml(file)
    with (tmp_path / "sparse.yaml").open("wb") as stream:
        stream.truncate(2**26)
    with pytest.raises(
        UserError, match=rf"^{tmp_path}/sparse.yaml: cannot be read: it has more than {MAX_BYTES:,} bytes$"
    ):
        load_yaml(tmp_path / "sparse.yaml")


def test_what_a_bomb_takes_is_little(tmp_path: Path) -> None:
    """The whole of it, in a process that may take 300 MB beyond what it has imported."""
    for name, (text, _) in TEXTS.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    program = f"""
from pathlib import Path
from distill.errors import UserError
from trainers.recipe.load import resolve
from tests.limited import limit
limit(300)
for file in sorted(Path({str(tmp_path)!r}).glob("*.yaml")):
    try:
        resolve(file)
    except UserError as error:
        print(file.stem)
"""
    assert sorted(limited(program).splitlines()) == sorted(TEXTS)
