"""Folders in which one file is hostile: JSON, safetensors, caches and special files in the place of any file."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.hostile.mutate import VALUES, damaged, damaged_json, json_text, mutated, special
from tests.hostile.trial import Call, Place

LIMIT = ["--time-limit", "0:01:08"]  # a recipe may ask for a run that never ends; a run stops a minute before
PAIRS = ["--count", "4", "--evaluations", "3", "--batch", "4"]


def commands(tree: str, place: Place, draw: Random) -> tuple[list[str], list[str]]:
    """Return a command that reads a tree, and the folders in it in which the command may write."""
    given, out, valid = str(place.given / tree), str(place.out), place.valid
    student, dmd, sd = (str(valid / f"{name}.yaml") for name in ("student", "dmd", "sd"))
    train = ["--folder", f"{out}/run", *LIMIT]
    run = [
        ["sample", given, "--count", "2", "--which", draw.choice(["last", "best", "posthoc/0.15"])],
        ["sample", given, "--count", "2", "--teacher"],
        ["evaluate", given, "--samples", "8", "--which", draw.choice(["last", "best"])],
        ["export", given, f"{out}/export", "--format", draw.choice(["safetensors", "diffusers"])],
        ["resume", given, "images=24", *LIMIT],
        ["ema", given, "--std", "0.12"],
    ]
    found: dict[str, list[list[str]]] = {
        "edm": [
            ["train", student, f"teacher={given}", *train],
            ["pairs", given, f"{out}/pairs", "--data", "digits", *PAIRS],
            ["plan", student, f"teacher={given}"],
        ],
        "unet": [
            ["train", student, f"teacher={given}", "data=digits", *train],
            ["pairs", given, f"{out}/pairs", "--data", "digits", *PAIRS],
            ["plan", student, f"teacher={given}", "data=digits"],
        ],
        "run": [*run, ["train", student, f"start={given}", *train]],
        "teacher_run": [
            *run,
            ["train", student, f"teacher={given}/teacher", *train],
            ["pairs", given, f"{out}/p", *PAIRS],
        ],
        "pairs": [
            ["train", dmd, f"pairs.folder={given}", *train],
            ["pairs", str(valid / "unet"), given, "--data", "digits", *PAIRS[2:], "--count", "16"],
        ],
        "classifier": [
            [
                "evaluate",
                str(place.take("run")) if tree == "classifier" else "",
                "--samples",
                "8",
                "--classifier",
                given,
            ]
        ],
        "sd": [
            ["import", "diffusers", given, f"{out}/imported"],
            ["cache", sd, f"teacher={given}"],
            ["plan", sd, f"teacher={given}"],
            ["train", sd, f"teacher={given}", *train],
        ],
        "cache": [
            [draw.choice(["train", "cache"]), str(valid / f"{draw.choice(['sd', 'sd_images'])}.yaml"), f"cache={given}"]
        ],
        "pictures": [["train", student, f"data.path={given}", *train]],
        "captions": [["cache", str(valid / "sd_images.yaml"), f"data.path={given}"]],
        "export_diffusers": [["import", "diffusers", given, f"{out}/imported"]],
        "export_safetensors": [["train", student, f"teacher={given}", *train], ["plan", student, f"teacher={given}"]],
    }
    command = draw.choice(found[tree])
    if command[0] == "train" and "--folder" not in command:
        command = [*command, *train]
    writes = {"run", "teacher_run", "pairs", "cache"} & {tree} | ({"run"} if tree == "classifier" else set())
    return command, [f"in/{name}" for name in writes]


def swap(
    ending: str, change: Callable[[bytes, Random], tuple[bytes, str]], *trees: str
) -> Callable[[Random, Place], Call]:
    """Return a reader that changes one file with an ending in one of some trees."""

    def prepare(draw: Random, place: Place) -> Call:
        folder = place.take(tree := draw.choice([one for one in trees if any((place.valid / one).rglob(f"*{ending}"))]))
        files = [
            file for file in sorted(folder.rglob("*")) if file.suffix == ending and file.name != "export_check.json"
        ]
        file = draw.choice(files)
        changed, what = change(file.read_bytes(), draw)
        if len(files) > 1 and "checkpoints" in file.parts:  # the newest of them is read
            file = sorted(folder.glob(f"checkpoints/*/{file.name}"))[-1]
        file.write_bytes(changed)
        evil(file.parent, place)
        if draw.random() < 0.85:
            sign(file)
        command, writes = commands(tree, place, draw)
        return Call(command, writes, f"{file.relative_to(place.given)}: {what}")

    return prepare


def evil(folder: Path, place: Place) -> None:
    """Write modules whose import touches the canary: where a file may name them, and in the working directory."""
    text = f"open({str(place.canary)!r}, 'a').write(__name__ + ' was imported')\nclass Net: ...\n"
    (folder / "evil.py").write_text(text)
    for name in ("triton", "flash_attn", "sentencepiece", "wandb", "xformers", "evil"):
        (place.cwd / name).mkdir(exist_ok=True)
        (place.cwd / name / "__init__.py").write_text(text)


def sign(file: Path) -> None:
    """Make the hashes of a file right: those of a checkpoint's manifest, a cache's receipt, a list of pairs."""
    content = file.read_bytes()
    facts = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest, receipt, pairs = file.parent / "manifest.json", file.with_suffix(".json"), file.parent / "pairs.json"
    try:
        if manifest.is_file() and file != manifest:
            listed = json.loads(manifest.read_text())
            manifest.write_text(json.dumps({**listed, file.name: facts}))
        elif file.suffix == ".safetensors" and file.stem.isdigit() and receipt.is_file():
            receipt.write_text(json.dumps({**facts, "time": file.stat().st_mtime_ns}))
        elif pairs.is_file() and file != pairs:
            listed = json.loads(pairs.read_text())
            listed["shards"][file.name]["bytes"] = len(content)
            pairs.write_text(json.dumps(listed))
    except (ValueError, KeyError, TypeError):
        return


def damaged_tensors(content: bytes, draw: Random) -> tuple[bytes, str]:
    """Return a safetensors file with a header that lies, other tensors, other numbers, or damaged bytes."""
    if draw.random() < 0.2:
        return damaged(content, draw)
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    names = [name for name in header if name != "__metadata__"]
    if not names:
        return damaged(content, draw)
    name = draw.choice(names)
    entry, what = header[name], draw.choice([*TENSOR_LIES])
    made = TENSOR_LIES[what](header, data, name, entry, draw)
    if made is not None:
        return made, what
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data), f"{name}: {what}"


def _numbers(value: float) -> Callable[..., None]:
    """Return a lie that sets the numbers of a tensor."""

    def lie(header: Any, data: bytearray, name: str, entry: Any, draw: Random) -> None:
        first, last = entry["data_offsets"]
        code = {"F32": "<f", "F64": "<d"}.get(entry["dtype"])
        if code is None:
            data[first:last] = b"\xff" * (last - first)
            return
        part = struct.pack(code, value)
        count = draw.choice([1, (last - first) // len(part)])
        data[first : first + count * len(part)] = part * count

    return lie


def _field(key: str, *values: Any) -> Callable[..., None]:
    """Return a lie that sets a field of a tensor's entry."""
    return lambda header, data, name, entry, draw: entry.update({key: draw.choice(values)})


def _retyped(header: Any, data: bytearray, name: str, entry: Any, draw: Random) -> None:
    """Give all tensors a type and as many bytes as it needs, which are zero."""
    dtype, size = draw.choice(
        [("I8", 1), ("BOOL", 1), ("F16", 2), ("BF16", 2), ("F64", 8), ("I64", 8), ("F8_E4M3", 1), ("C64", 8)]
    )
    end = 0
    for one, fields in header.items():
        if one != "__metadata__":
            fields["dtype"], first = dtype, end
            end += math.prod(fields["shape"]) * size
            fields["data_offsets"] = [first, end]
    data[:] = bytes(end)


def _reshaped(header: Any, data: bytearray, name: str, entry: Any, draw: Random) -> None:
    shape = entry["shape"]
    entry["shape"] = draw.choice([[*shape, 1], [1, *shape], shape[::-1], [math.prod(shape)], [0], [], shape[:-1]])


def _smaller(header: Any, data: bytearray, name: str, entry: Any, draw: Random) -> None:
    """Leave one row of a tensor at the end of the file, where no offset behind it changes."""
    last = max((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"][1])
    fields = header[last]
    first, end = fields["data_offsets"]
    if fields["shape"] and fields["shape"][0] > 1:
        row = (end - first) // fields["shape"][0]
        fields["shape"][0], fields["data_offsets"] = 1, [first, first + row]
        del data[first + row :]


def _renamed(header: Any, data: bytearray, name: str, entry: Any, draw: Random) -> None:
    header[draw.choice(["x", "", f"{name}.x", name.upper(), "a|b", "../x", "\ud800"])] = header.pop(name)


def _raw_header(header: Any, data: bytearray, name: str, entry: Any, draw: Random) -> bytes:
    text = draw.choice(
        [
            b"{}",
            b"[]",
            b"null",
            b"[" * 200_000,
            b'{"a":' * 100_000,
            b"\xff" * 50,
            json.dumps(header).encode() + b" " * 100,
        ]
    )
    return struct.pack("<Q", len(text)) + text + bytes(data)


def _sparse(header: Any, data: bytearray, name: str, entry: Any, draw: Random) -> None:
    """Claim a terabyte."""
    entry["shape"], entry["data_offsets"] = [2**20, 2**18], [0, 2**40]


def _values(header: Any, data: bytearray, name: str, entry: Any, draw: Random) -> None:
    changed, _ = mutated(entry, draw)
    header[name] = changed


def _metadata(header: Any, data: bytearray, name: str, entry: Any, draw: Random) -> None:
    rows = ["[]", "[1, 2, 3]", "{", "null", "-1", "[" * 50_000, "9" * 5000, "\x00", json.dumps({"x": [0, 2**63]})]
    header["__metadata__"] = draw.choice([{"rows": draw.choice(rows), "format": "pt"}, {"x": 1}, [], {"format": "tf"}])


TENSOR_LIES: dict[str, Callable[..., bytes | None]] = {
    "NaN": _numbers(math.nan),
    "infinite": _numbers(math.inf),
    "1e38": _numbers(3e38),
    "zero": _numbers(0.0),
    "shape": _field("shape", [2**63], [-1], [2**31, 2**31, 2**31], [], "x", [0.5], [None], [10**30]),
    "dtype": _field("dtype", "I8", "F64", "X", None, "BOOL", "F4", 3),
    "offsets": _field("data_offsets", [0, 2**63], [8, 4], [-1, 4], [0, 0], [0], "x", None, [2**64, 2**65]),
    "other type": _retyped,
    "other shape": _reshaped,
    "fewer rows": _smaller,
    "other name": _renamed,
    "missing": lambda header, data, name, entry, draw: header.pop(name) and None,
    "header": _raw_header,
    "sparse": _sparse,
    "entry": _values,
    "metadata": _metadata,
}


def hostile_facts(content: bytes, draw: Random, key: str) -> tuple[bytes, str]:
    """Return a safetensors file with other facts in its header, and the change in words."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    facts = header["__metadata__"]
    if key and draw.random() < 0.6:
        changed, what = mutated(json.loads(facts[key]), draw)
        facts[key] = json_text(changed).decode(errors="replace")
    else:
        what, values = "facts", [*VALUES, "[/red]", "a\nb", "1e999", "null", "[" * 100_000, "9" * 5000, "NaN"]
        facts[draw.choice([*facts, "x"])] = str(draw.choice(values)).encode(errors="replace").decode()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :], what


def sparse(file: Path, name: str) -> str:
    """Let a tensor claim a terabyte, of which the file has a hole, and say so."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, end = json.loads(content[8 : 8 + length]), 0
    for one in [*sorted(header.keys() - {name, "__metadata__"}), name]:
        first, last = (0, 2**40) if one == name else header[one]["data_offsets"]
        header[one]["data_offsets"] = [end, end := end + last - first]
    header[name]["shape"] = [2**40 // {"F32": 4, "F64": 8}[header[name]["dtype"]]]
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)
    return f"{name}: a hole of a terabyte"


def special_files(draw: Random, place: Place) -> Call:
    """Prepare a tree in which a file or a folder is special."""
    tree = draw.choice(
        ["edm", "unet", "run", "teacher_run", "pairs", "classifier", "sd", "cache", "pictures", "captions"]
    )
    folder = place.take(tree)
    target = draw.choice(sorted(folder.rglob("*")))
    what = special(target, draw, place.guard)
    command, writes = commands(tree, place, draw)
    return Call(command, writes, f"{target.relative_to(place.given)}: {what}")


JSON_TREES = ("edm", "unet", "run", "teacher_run", "pairs", "classifier", "sd", "captions", "export_safetensors")
READERS = {
    "JSON files": lambda draw, place: swap(
        draw.choice([".json", ".json", ".jsonl"]), damaged_json, *draw.choice([JSON_TREES, ("run", "edm", "pairs")])
    )(draw, place),
    "safetensors": swap(
        ".safetensors", damaged_tensors, "edm", "unet", "run", "run", "teacher_run", "classifier", "sd"
    ),
    "caches and pairs": lambda draw, place: swap(
        *draw.choice([(".safetensors", damaged_tensors), (".safetensors", damaged), (".json", damaged_json)]),
        "pairs",
        "cache",
    )(draw, place),
    "special files": special_files,
}
