"""Damage that fits every file, and values that fit no field."""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

DEEP = 200_000  # levels of nesting
NAN, HUGE = float("nan"), 10**400
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), HUGE, 0.5, -0.0, 1e-45, 1e308, -1e308),
    *(NAN, float("inf"), -float("inf"), "", "x", "1", "1e9", "nan", "null", "\0", "\ud800", "\n\n", "../guard/x", "/"),
    *(
        "~",
        "a" * 300,
        "%s{0}$HOME",
        "os:system",
        "evil.py:Net",
        "antigravity:Net",
        [],
        [0],
        [[]],
        [None] * 3,
        [1] * 5000,
    ),
    *(
        [NAN],
        [-1, 2**63],
        {},
        {"name": "x"},
        {"name": None},
        {"name": ["x"]},
        {"": ""},
        {"bytes": -1},
        {"x": {"y": [0]}},
    ),
]
RAW = {  # values that no encoder writes
    "deep list": "[" * DEEP + "]" * DEEP,
    "deep mapping": '{"a":' * DEEP + "1" + "}" * DEEP,
    "unclosed": "[" * DEEP,
    "long number": "1" * 50_000,
    "exponent": "1e999999999",
    "surrogate": '"\\ud800"',
    "half a surrogate pair": '"\\ud83d"',
    "word": "NaN",
    "minus word": "-Infinity",
    "NUL": '"a\\u0000b"',
    "control": '"\x01\x02"',
    "single quotes": "'x'",
    "comment": "1 // x",
    "trailing comma": "[1,]",
    "much text": '"' + "x" * 3_000_000 + '"',
    "many keys": "{" + ",".join(f'"{n}":{n}' for n in range(50_000)) + "}",
}
MARKER = "\x7fRAW\x7f"


def damaged(content: bytes, draw: Random) -> tuple[bytes, str]:
    """Return a content with some damage, and the damage in words."""
    size, at = len(content), draw.randrange(max(1, len(content)))
    end = min(size, at + draw.choice([1, 8, 64, 512]))
    some = bytes(draw.randrange(256) for _ in range(8))
    kinds: dict[str, Callable[[], bytes]] = {
        "flipped bits": lambda: flipped(content, draw, draw.choice([1, 3, 30])),
        "cut off": lambda: content[: draw.choice([0, 1, 7, 8, 9, at, max(0, size - 1)])],
        "zeros": lambda: content[:at] + bytes(end - at) + content[end:],
        "ones": lambda: content[:at] + b"\xff" * (end - at) + content[end:],
        "removed": lambda: content[:at] + content[end:],
        "repeated": lambda: content[:at] + content[at:end] * draw.choice([2, 3, 1000]) + content[end:],
        "inserted": lambda: content[:at] + some + content[at:],
        "length": lambda: (
            content[:at] + struct.pack("<Q", draw.choice([2**63 - 1, 2**64 - 1, 2**31])) + content[at + 8 :]
        ),
        "appended": lambda: content + some * draw.choice([1, 1000]),
        "reversed": lambda: content[::-1],
        "HTML": lambda: b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "byte order mark": lambda: draw.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff\x00\x00"]) + content,
        "an LFS pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    }
    name = draw.choice(list(kinds))
    return kinds[name](), name


def flipped(content: bytes, draw: Random, count: int) -> bytes:
    """Return a content with some of its bits flipped, which are mostly at its beginning."""
    changed = bytearray(content)
    for _ in range(count if changed else 0):
        changed[draw.randrange(min(len(changed), draw.choice([64, 1024, len(changed)])))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def keys_of(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in nested mappings and lists."""
    pairs: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*before, key)
        yield from keys_of(inner, (*before, key))


def mutated(content: Any, draw: Random) -> tuple[Any, str]:
    """Return plain values with one of them other, gone or new, and the change in words. `content` itself changes."""
    places = list(keys_of(content))
    if not places or draw.random() < 0.05:
        return (value := draw.choice(VALUES)), f"all is {value!r:.60}"
    *outer, key = place = draw.choice(places)
    owner = content
    for step in outer:
        owner = owner[step]
    kind, where = draw.choice(["value"] * 6 + ["raw"] * 2 + ["gone", "new", "swapped"]), ".".join(map(str, place))
    if kind == "gone":
        del owner[key]
    elif kind == "new" and isinstance(owner, dict):
        owner[draw.choice(["x", "", "__class__", "name", "\ud800", "a" * 5000])] = draw.choice(VALUES)
    elif kind == "swapped" and isinstance(owner, dict):
        other = draw.choice(list(owner))
        owner[key], owner[other] = owner[other], owner[key]
    elif kind == "raw":
        name = draw.choice(list(RAW))
        owner[key] = f"{MARKER}{name}{MARKER}"
        return content, f"{where}: {name}"
    else:
        owner[key] = draw.choice(VALUES)
        return content, f"{where} = {owner[key]!r:.60}"
    return content, f"{where} {kind}"


@contextmanager
def long_numbers() -> Iterator[None]:
    """Let Python write numbers of any length, which it refuses elsewhere."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(before)


def json_text(content: Any) -> bytes:
    """Return plain values as JSON, with what no encoder writes in the places that `mutated` marks."""
    with long_numbers():
        text = json.dumps(content)
    for name, raw in RAW.items():
        text = text.replace(json.dumps(f"{MARKER}{name}{MARKER}"), raw)
    return text.encode(errors="surrogatepass")


def damaged_json(content: bytes, draw: Random) -> tuple[bytes, str]:
    """Return a JSON file with other values, or with keys twice, or with damaged bytes."""
    if draw.random() < 0.15:
        return damaged(content, draw)
    if content.count(b"\n{") > 0:  # JSON lines
        lines = content.splitlines(keepends=True)
        at = draw.randrange(len(lines))
        line, what = damaged_json(lines[at].strip(), draw)
        return b"".join([*lines[:at], line, b"\n", *lines[at + 1 :]]), f"line {at}: {what}"
    values = json.loads(content)
    if draw.random() < 0.05 and isinstance(values, dict):
        key = draw.choice(list(values))
        return content.rstrip()[
            :-1
        ] + f", {json.dumps(key)}: {json.dumps(draw.choice(VALUES[:9]))}}}".encode(), f"{key} twice"
    values, what = mutated(values, draw)
    return json_text(values), what


def special(place: Path, draw: Random, guard: Path) -> str:
    """Put a special file in the place of a file or folder, and return it in words."""
    kind = draw.choice(
        [
            "FIFO",
            "/dev/zero",
            "/dev/full",
            "/dev/null",
            "/dev/random",
            "folder",
            "empty",
            "loop",
            "dangling",
            "socket",
            "gone",
            "self",
        ]
    )
    content = place.read_bytes() if place.is_file() else b""
    if place.is_dir() and not place.is_symlink():
        os.rename(place, guard / "taken")
    else:
        place.unlink()
    if kind == "FIFO":
        os.mkfifo(place)
    elif kind.startswith("/dev"):
        place.symlink_to(kind)
    elif kind == "folder":
        place.mkdir()
    elif kind == "empty":
        place.touch()
    elif kind == "loop":
        place.symlink_to(place.name)
    elif kind == "dangling":
        place.symlink_to("/nowhere/at/all")
    elif kind == "socket":
        os.chdir(place.parent)  # the path of a socket is short
        socket.socket(socket.AF_UNIX).bind(place.name[:100])
    elif kind == "self":
        place.symlink_to("/proc/self/environ")
    return f"{kind} of {len(content)} bytes" if kind == "empty" else kind
