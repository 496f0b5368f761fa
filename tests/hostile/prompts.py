"""Hostile files and folders of prompts, of which samples are written in the folders of benchmarks."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

from tests.hostile.mutate import RAW, VALUES, damaged, damaged_json, special
from tests.hostile.pictures import once
from tests.hostile.trees import evil
from tests.hostile.trial import Call, Place

ROWS: list[dict[str, Any]] = [
    {"tag": "two_object", "include": [{"class": "bench", "count": 1}], "id": f"n{number}", "prompt": text}
    for number, text in enumerate(["a photo of a bench", "a red cat"])
]
NAMES: tuple[Any, ...] = (
    *(
        "../guard/x",
        "/",
        "..",
        ".",
        "",
        "a/b",
        "/tmp/x",
        "~",
        "a\0b",
        "\ud800",
        "a\nb",
        " ",
        "x" * 300,
        "-x",
        "n0",
        "n1",
    ),
    *("é" * 200, "a\\b", "CON", "%s", "[/red]", "\x1b[31m", "prompts", "\u202e", 0, 1.5, None, True, [], {}, ["a"]),
)
TEXTS: tuple[Any, ...] = (
    *(
        "\ud800",
        "a\0b",
        "",
        " ",
        "\n",
        "x" * 20_000,
        "x" * 3_000_000,
        "é" * 100_000,
        "\U0001f600" * 70_000,
        "word " * 400_000,
    ),
    *(
        "[/red]",
        "\x1b[2J",
        "\u2028",
        "<|endoftext|>" * 9000,
        "{}%s",
        "\ufeff",
        0,
        None,
        [],
        {},
        ["a"],
        True,
        "\x85",
        "\udfff",
    ),
)
LAYOUTS = ("plain", "geneval", "dpg")


def lines(rows: list[dict[str, Any]], ascii_only: bool = True) -> bytes:
    """Return rows as JSON lines."""
    return "".join(f"{json.dumps(row, ensure_ascii=ascii_only)}\n" for row in rows).encode(errors="surrogatepass")


def table(rows: list[dict[str, Any]], ending: str) -> bytes:
    """Return rows as a table."""
    stream = StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(stream, columns, dialect="excel" if ending == ".csv" else "excel-tab")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode(errors="surrogatepass")


def odd_rows(draw: Random) -> tuple[list[dict[str, Any]], str]:
    """Return rows of which one has another value, and the value in words."""
    rows: list[dict[str, Any]] = [dict(row) for row in ROWS]
    row = draw.choice(rows)
    key = draw.choice(["id", "id", "id", "item_id", "prompt", "prompt", "tag", "include", "file_name", "PROMPT"])
    values = {"id": NAMES, "item_id": NAMES, "prompt": TEXTS, "file_name": NAMES}.get(key, VALUES)
    row[key] = draw.choice(values)
    if key == "item_id":
        rows = [{**other, "item_id": other["id"]} | other for other in rows]
    return rows, f"{key} = {row[key]!r:.60}"


def large(kind: str) -> bytes:
    """Return a file of prompts that is large, or whose content is."""
    kinds: dict[str, Callable[[], bytes]] = {
        "many.txt": lambda: b"a\n" * 2**24,
        "huge.txt": lambda: b"a\n" * 2**27,
        "long.txt": lambda: b"word " * 2**22,
        "faces.txt": lambda: "\U0001f600\n".encode() * 2**22,
        "many.jsonl": lambda: b'{"prompt":"a"}\n' * 2**21,
        "lists.jsonl": lambda: b'{"prompt":"a","x":[' + b"[]," * 2**23 + b"0]}",
        "keys.jsonl": lambda: b'{"prompt":"a",' + b",".join(b'"%d":0' % n for n in range(2**21)) + b"}",
        "many.csv": lambda: b"prompt,id\n" + b"a,b\n" * 2**22,
        "columns.csv": lambda: b"prompt," + b"a," * 2**22 + b"\n" + b"x," * 2**22,
        "wide.csv": lambda: b"prompt\n" + (b"x" * 1000 + b",") * 2**14,
        "quoted.csv": lambda: b'prompt,id\n"' + b"a\n" * 2**23,
        "many.tsv": lambda: b"prompt\tid\n" + b"\t\t\t\n" * 2**22,
    }
    return kinds[kind]()


LARGE = (
    *("many.txt", "huge.txt", "long.txt", "faces.txt", "many.jsonl", "lists.jsonl", "keys.jsonl", "many.csv"),
    *("columns.csv", "wide.csv", "quoted.csv", "many.tsv"),
)


def folder_of_prompts(draw: Random, place: Place) -> tuple[Path, str]:
    """Make a folder of prompts in files, of which some are odd, and return it with the oddity in words."""
    folder = place.given / "prompts"
    folder.mkdir()
    for row in ROWS:
        (folder / f"{row['id']}.txt").write_text(row["prompt"])
    what = draw.choice(["special", "name", "text", "many", "link", "bytes", "hole", "folder", "no name"])
    if what == "special":
        what = special(folder / "n0.txt", draw, place.guard)
    elif what == "name":
        name = draw.choice(["a.b", " ", "\n", "é" * 100, "x" * 250, "-", "\udcff", "a\\b", "[/red]".replace("/", "")])
        (folder / f"{name}.txt").write_text("a dog")
        what = f"name {name!r:.40}"
    elif what == "text":
        text = draw.choice([one for one in TEXTS if isinstance(one, str)])
        (folder / "n2.txt").write_bytes(text.encode(errors="surrogatepass"))
        what = f"text {text!r:.40}"
    elif what == "many":
        for number in range(3000):
            (folder / f"{number}.txt").write_text("")
    elif what == "link":
        (folder / "n3.txt").symlink_to(draw.choice(["/etc/hostname", "/proc/self/environ", "..", str(place.guard)]))
    elif what == "bytes":
        (folder / "n2.txt").write_bytes(damaged(b"a dog on a bench", draw)[0])
    elif what == "hole":
        for number in range(20):
            with (folder / f"hole{number}.txt").open("wb") as stream:
                stream.truncate(200_000_000)
    elif what == "folder":
        (folder / "n4.txt").mkdir()
    else:
        (folder / ".txt").write_text("a dog")
    return folder, f"folder: {what}"


def hostile_file(draw: Random, place: Place) -> tuple[Path, str]:
    """Write a file of prompts that is hostile, and return it with the hostility in words."""
    kind = draw.choice(["rows"] * 6 + ["JSON"] * 3 + ["raw", "damaged", "damaged", "large", "special", "bytes"])
    ending = draw.choice([".jsonl", ".jsonl", ".csv", ".tsv"] if kind in ("rows", "damaged", "special") else [".jsonl"])
    if kind == "large":
        name = draw.choice(LARGE)
        file = place.given / name
        os.link(_made(place, name), file)
        return file, f"large {name}"
    rows, what = odd_rows(draw) if kind == "rows" else (ROWS, kind)
    content = lines(rows, draw.random() < 0.5) if ending == ".jsonl" else table(rows, ending)
    if kind == "JSON":
        content, what = damaged_json(content, draw)
    elif kind == "raw":
        name = draw.choice([*RAW])
        line = f'{{"id": "n9", "tag": 1, "include": [], "prompt": "a", "x": {RAW[name]}}}\n'
        content, what = content + line.encode(errors="surrogatepass"), f"raw {name}"
    elif kind == "damaged":
        content, what = damaged(content, draw)
    elif kind == "bytes":
        ending = draw.choice([".txt", ".csv", ".png", "", ".JSONL"])
        content = draw.choice(
            [b"a\0b\n", b"\xff\xfea\0\n\0", b"\r\r\n\r", b"a\x85b\x0bc\x1c", b"prompt\n", b"\xef\xbb\xbf"]
        )
    file = place.given / f"prompts{ending}"
    file.write_bytes(content)
    return file, f"{file.name}: {special(file, draw, place.guard) if kind == 'special' else what}"


def _made(place: Place, name: str) -> Path:
    """Return the large file of a name, which all inputs share."""
    once(place, name, lambda: large(name))
    return place.valid.parent / "bombs" / name


def prompts(draw: Random, place: Place) -> Call:
    """Prepare prompts, and a command that samples a teacher of prompts for them."""
    prompts, what = folder_of_prompts(draw, place) if draw.random() < 0.2 else hostile_file(draw, place)
    evil(place.given, place)
    layout = draw.choice([*LAYOUTS] * 5 + ["", "PLAIN"])
    command = ["sample", str(place.valid / "sd"), "--prompts", str(prompts), "--layout", layout]
    command += ["--out", str(place.out / "drawn"), "--sampler", "ddim", "--evaluations", "1"]
    command += ["--per-prompt", draw.choice(["1", "3", "4097", "999999999999"])] if draw.random() < 0.3 else []
    command += ["--part", draw.choice(["2/2", "1/999999999999", "0/1", "3/2", "x"])] if draw.random() < 0.1 else []
    return Call(command, [], f"{layout}, {what}")


READERS = {"prompt files": prompts}
