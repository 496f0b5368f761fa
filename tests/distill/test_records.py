"""The one reader of JSON: what it refuses, in one line that names the field, and at once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import pytest
from pydantic import Field, with_config
from typing_extensions import TypedDict

from distill.errors import UserError
from distill.records import EXTENSIBLE, MAX_MARKS, STRICT, Count, Positive, parse_record, read_record
from distill.saved_files import MAX_BYTES, open_regular, read_bounded
from tests.limited import limited


@with_config(STRICT)
class Form(TypedDict):
    """A format with fields of every kind."""

    scale: Positive
    count: NotRequired[Count]
    kind: NotRequired[Literal["x0", "eps"]]
    mean: NotRequired[tuple[float, ...]]
    pair: NotRequired[tuple[int, int]]
    names: NotRequired[dict[str, Annotated[str, Field(max_length=9)]]]
    more: NotRequired[Any]


@with_config(EXTENSIBLE)
class Open(TypedDict):
    """A format that may hold further keys."""

    scale: Positive


GOOD: dict[str, dict[str, Any]] = {
    '{"scale": 1}': {"scale": 1.0},
    '{"scale": 0.5, "count": 3, "kind": "eps", "mean": [1, -2.5], "names": {"a": "b"}, "more": [null, {"c": 1e30}]}': {
        "scale": 0.5,
        "count": 3,
        "kind": "eps",
        "mean": (1.0, -2.5),
        "names": {"a": "b"},
        "more": [None, {"c": 1e30}],
    },
}


@pytest.mark.parametrize("text", GOOD)
def test_what_is_right_is_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    assert read_record(tmp_path / "a.json", Form) == parse_record(text, Form) == GOOD[text]


def test_further_keys_are_kept_where_a_format_allows_them() -> None:
    assert parse_record('{"scale": 2, "later": [1]}', Open) == {"scale": 2.0, "later": [1]}


WRONG: dict[str, tuple[str | bytes, str]] = {
    "nothing": ("", "it is no JSON: EOF while parsing a value at line 1 column 0"),
    "half": ('{"scale": 1', "it is no JSON: EOF while parsing an object at line 1 column 11"),
    "two values": ('{"scale": 1}{}', "it is no JSON: trailing characters at line 1 column 13"),
    "a list": ("[1]", "must be an object, got [1]"),
    "null": ("null", "must be an object, got None"),
    "zero bytes": ("\0" * 20, "it is no JSON: expected value at line 1 column 1"),
    "a zero in a string": ('{"scale\0": 1}', "it is no JSON: control character"),
    "no UTF-8": (b'{"scale": "\xff"}', "it is no JSON: invalid unicode code point at line 1 column 12"),
    "half a letter": ('{"scale": "\\ud800"}', "it is no JSON: "),
    "200,000 levels": ("[" * 200_000, "it is no JSON: recursion limit exceeded at line 1 column "),
    "200,000 levels of keys": ('{"more":' * 200_000, "it is no JSON: recursion limit exceeded at line 1 column "),
    "ten million digits": (f'{{"scale": {"1" * 10_000_000}}}', "it is no JSON: number out of range at line 1 column "),
    "a key twice": ('{"scale": 1, "scale": 2}', "key 'scale' stands twice"),
    "a key twice inside": ('{"scale": 1, "more": [{"a": 1, "a": 1}]}', "key 'a' stands twice"),
    "nan": ('{"scale": NaN}', "key 'scale': must be a finite number, got nan"),
    "infinity": ('{"scale": -Infinity}', "key 'scale': must be a finite number, got -inf"),
    "a number too large": ('{"scale": 1e999}', "key 'scale': must be a finite number, got inf"),
    "out of reason": ('{"scale": 1e300}', "key 'scale': must be less than 1000000, got 1e+300"),
    "nothing of it": ('{"scale": 0}', "key 'scale': must be greater than 0.000001, got 0"),
    "nan where anything may be": ('{"scale": 1, "more": NaN}', "key 'more': must be finite, got nan"),
    "nan in lists": ('{"scale": 1, "more": [[1, NaN]]}', "key 'more': must be finite, got [[1, nan]]"),
    "a truth": ('{"scale": true}', "key 'scale': must be a valid number, got True"),
    "words": ('{"scale": "1"}', "key 'scale': must be a valid number, got '1'"),
    "a fraction": ('{"scale": 1, "count": 1.0}', "key 'count': must be a valid integer, got 1.0"),
    "below zero": ('{"scale": 1, "count": -1}', "key 'count': must be greater than or equal to 0, got -1"),
    "64 bits": (f'{{"scale": 1, "count": {2**63}}}', "key 'count': must be less than 9223372036854775808, got 9223372"),
    "no such choice": ('{"scale": 1, "kind": "v"}', "key 'kind': must be 'x0' or 'eps', got 'v'"),
    "an entry": ('{"scale": 1, "mean": [0, "1"]}', "key 'mean.1': must be a valid number, got '1'"),
    "missing": ("{}", "key 'scale': is missing"),
    "an entry that is missing": ('{"scale": 1, "pair": [1]}', "key 'pair.1': is missing"),
    "unknown": ('{"scale": 1, "skale": 2}', "key 'skale': is no key of this file"),
}


@pytest.mark.parametrize("how", WRONG)
def test_what_is_wrong_is_one_line_at_once(how: str, tmp_path: Path) -> None:
    text, problem = WRONG[how]
    file, start = tmp_path / "a.json", time.monotonic()
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UserError) as refused:
        read_record(file, Form)
    line = str(refused.value)
    assert line.startswith(f"'{file}' is damaged: {problem}") and "\n" not in line and len(line) < 500
    assert time.monotonic() - start < 5


def test_files_of_other_libraries_may_hold_infinity(tmp_path: Path) -> None:
    """A scheduler of diffusers writes `lambda_min_clipped: -Infinity`."""
    (tmp_path / "a.json").write_text('{"a": -Infinity, "b": 1e999}')
    assert read_record(tmp_path / "a.json", finite=False) == {"a": -float("inf"), "b": float("inf")}


def sparse(file: Path) -> None:
    """Write a file of 1 TB that takes no room."""
    with file.open("wb") as stream:
        stream.truncate(2**40)


PLACES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a pipe": (os.mkfifo, "it is no regular file"),
    "a folder": (Path.mkdir, "it is no regular file"),
    "a device": (lambda file: file.symlink_to("/dev/zero"), "it is no regular file"),
    "a terabyte": (sparse, f"it has more than {MAX_BYTES:,} bytes"),
    "a link to itself": (lambda file: file.symlink_to(file), "Too many levels of symbolic links"),
}


@pytest.mark.parametrize("how", PLACES)
def test_what_is_no_file_of_text_is_refused_at_once(how: str, tmp_path: Path) -> None:
    make, problem = PLACES[how]
    file, start = tmp_path / "a.json", time.monotonic()
    make(file)
    with pytest.raises(UserError) as refused:
        read_record(file, Form, "teacher: the file")
    assert str(refused.value) == f"teacher: the file cannot be read: {problem}"
    with pytest.raises(OSError, match=problem):
        read_bounded(file)
    assert time.monotonic() - start < 5


def test_a_missing_file_is_the_callers_to_explain(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "a.json", Form)


def test_a_refused_file_is_closed(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(OSError, match="no regular file"):
            open_regular(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_floats_are_those_of_python() -> None:
    numbers = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, 123456789.123456789, -0.0]
    assert parse_record(json.dumps(numbers), list[float]) == numbers


FULL = """
from pathlib import Path
from typing import Any
from distill.errors import UserError
from distill.records import MAX_MARKS, read_record
from tests.limited import limit
limit(1000)
for text, kind in (
    ("[" + "0," * 8_000_000 + "0]", list[str]),
    ("{" + ",".join(f'"{number:x}":[]' for number in range(1_000_000)) + "}", dict[str, str]),
    ("[" + "[[[[[[[[[[]]]]]]]]]]," * 750_000 + "0]", Any),
    ("[" + "0," * (MAX_MARKS - 1) + "0]", list[str]),
):
    Path(sys.argv[1]).write_text(text)
    try:
        read_record(Path(sys.argv[1]), kind)
    except UserError as error:
        print(error)
"""


def test_memory_is_in_proportion(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    *refused, read = limited(FULL.replace("sys.argv[1]", repr(str(file)))).splitlines()
    assert refused == [f"'{file}' is damaged: it has more than {MAX_MARKS:,} commas and brackets"] * 3
    assert read == f"'{file}' is damaged: key '0': must be a valid string, got 0"
