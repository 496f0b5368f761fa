"""Hostile statistics of real images: .npz, .pkl and .safetensors files with which samples are compared."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from io import BytesIO
from random import Random
from typing import Any

import numpy as np
import torch

from tests.hostile import pickles
from tests.hostile.mutate import VALUES, damaged, special
from tests.hostile.pictures import once
from tests.hostile.trees import LIMIT, damaged_tensors, evil, hostile_facts, sparse
from tests.hostile.trial import Call, Place

NAMES = (*["real"] * 9, "img08", "img08", "cifar10-32x32", "img9999", "[bold]x[red", "a\nb", "r" * 240, "-r", " ")
SHAPES: tuple[Any, ...] = (
    *((2**63,), (2**31, 2**31), (-1,), (0,), (), (8, 1), (4,), (8, 8, 1), (4096, 4096), (4097,), (8.0,), ("8",)),
    *((True, 8), (None,), ((8,),), (10**400,), [8], 8, "88", None, {}, (math.nan,), (math.inf, 1), (8,) * 40),
)
LITERALS = (
    *("-" * 9000 + "1", "(" * 150 + ")" * 150, "(" * 5000, "1+" * 4000 + "1", "9" * 5000, "'''", "{", "[]", "None", ""),
    *("__import__('os').system('x')", "{**{}}", "{'descr': lambda: 0}", "\0", "\xff" * 40, "f'{x}'", "{'shape': 8L}"),
    *("{'descr': '<f8', 'fortran_order': 0, 'shape': (8,)}", "{'descr': '<f8', 'shape': (8,)}", "1j", "...", "{1:2}"),
)
DTYPES = (
    *("|O", "<f4", ">f8", "<f2", "<i8", "|b1", "<c16", "|V8", "|S8", "<U2", "<M8[s]", "x", "", "<f8,<f8", "f8"),
    *([("a", "<f8")], [], [("a", [("b", "|O")])], {"names": ["a"], "formats": ["<f8"]}, 8, None, ("<f8", (2**30,))),
)


class Recorded:
    """An object that is pickled as a call of a name with any arguments and any state."""

    def __init__(self, call: Any, arguments: tuple[Any, ...], state: Any = None) -> None:
        self.reduced = (call, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def moments(draw: Random) -> tuple[dict[str, np.ndarray[Any, Any]], str]:
    """Return a mean and a covariance that are those of no images, in words too."""
    vectors = np.random.default_rng(draw.randrange(99)).standard_normal((12, 8))
    mean, covariance = vectors.mean(axis=0), np.cov(vectors, rowvar=False)
    value = draw.choice([math.nan, math.inf, -math.inf, 1e308, -1e308, 1e160, 3e38, 0.0, -1.0, 1e-320])
    which = draw.choice(
        ["number of the mean", "number", "all", "lower half", "negative", "not symmetric", "other", "none"]
    )
    if which == "number of the mean":
        mean[draw.randrange(8)] = value
    elif which == "number":
        covariance[draw.randrange(8), draw.randrange(8)] = value
    elif which == "all":
        covariance[:] = mean[:] = value
    elif which == "lower half":
        covariance[np.tril_indices(8)] = value
    elif which == "negative":
        covariance = -covariance
    elif which == "not symmetric":
        covariance[0] += 5
    elif which == "other":
        size = draw.choice([1, 2, 7, 9, 300])
        mean, covariance = np.zeros(size), np.eye(size)
    return {"mu": mean, "sigma": covariance}, f"{which} {value}"


def npy(array: np.ndarray[Any, Any], draw: Random, lie: bool) -> bytes:
    """Return an array as a member of an .npz file, with a header that may lie."""
    if not lie:
        stream = BytesIO()
        np.save(stream, array)
        return stream.getvalue()
    fields = {"descr": "<f8", "fortran_order": False, "shape": array.shape}
    change = draw.choice(["shape", "descr", "fortran_order", "literal", "length", "version"])
    fields |= {
        "shape": {"shape": draw.choice(SHAPES)},
        "descr": {"descr": draw.choice(DTYPES)},
        "fortran_order": {"fortran_order": draw.choice([True, 1, None, "x", []])},
    }.get(change, {})
    text = header_text(fields) if change != "literal" else f"{draw.choice(LITERALS)}\n".encode("latin-1")
    version = bytes(draw.choice([(1, 0), (2, 0), (3, 0)]))
    if change == "version":
        version = bytes(draw.choice([(0, 0), (4, 0), (1, 1), (255, 255)]))
    length = draw.choice([2**16 - 1, 0, 10**9, 2**32 - 1]) if change == "length" else len(text)
    prefix = struct.pack("<H", length % 2**16) if version[0] == 1 else struct.pack("<I", length)
    return b"\x93NUMPY" + version + prefix + text + array.tobytes()


def header_text(fields: dict[str, Any]) -> bytes:
    """Return a header as numpy writes it."""
    return ("{" + "".join(f"'{key}': {value!r}, " for key, value in fields.items()) + "}\n").encode("latin-1")


def npz_bomb(kind: str, megabytes: int = 3 * 2**10) -> bytes:
    """Return an .npz file with a member that packs to a thousandth."""
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("mu.npy", "w", force_zip64=True) as member:
            header = header_text({"descr": "<f8", "fortran_order": False, "shape": (8,)})
            if kind == "header":
                member.write(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1))
            else:
                member.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
            for _ in range(megabytes):
                member.write(b" " * 2**20)
        with archive.open("sigma.npy", "w") as member:
            np.save(member, np.zeros((4096, 4096)))
    return stream.getvalue()


def directory_alone(name: bytes, count: int, offset: int) -> bytes:
    """Return an .npz file whose directory names members, far away, that it does not hold."""
    more, far = struct.pack("<HHQ", 1, 8, offset), 2**32 - 1
    record = struct.pack("<4s6H3L5H2L", b"PK\1\2", 45, 45, *[0] * 7, len(name), len(more), *[0] * 4, far) + name + more
    directory = record * count
    return directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2**16 - 1, 2**16 - 1, len(directory), 0, 0)


def hostile_npz(draw: Random, place: Place) -> tuple[bytes, str]:
    """Return an .npz file of statistics that is hostile, and the hostility in words."""
    kind = draw.choice(["damaged", "header", "header", "header", "numbers", "numbers", "archive", "bomb", "pickle"])
    if kind == "damaged":
        return damaged((place.valid / "real.npz").read_bytes(), draw)
    if kind == "bomb":
        what = draw.choice(["header", "data", "members"])
        make = (lambda: directory_alone(b"a", 2_000_000, 0)) if what == "members" else (lambda: npz_bomb(what))
        return once(place, f"{what}.npz", make), f"bomb {what}"
    arrays, what = moments(draw) if kind == "numbers" else (dict(np.load(place.valid / "real.npz")), kind)
    lying = draw.choice([*arrays]) if kind == "header" else ""
    members = {name: npy(array, draw, name == lying) for name, array in arrays.items()}
    if kind == "pickle":
        text = header_text({"descr": "|O", "fortran_order": False, "shape": (8,)})
        header = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
        members["mu"] = header + pickles.code(place, draw, pickle.dumps(None))
    method = draw.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    stream, change = BytesIO(), draw.choice([*ARCHIVES]) if kind == "archive" else ""
    with zipfile.ZipFile(stream, "w", method) as archive, warnings.catch_warnings(action="ignore"):
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
        if change == "twice":
            archive.writestr("mu.npy", npy(np.full(8, math.nan), draw, False))
    content = stream.getvalue()
    return (ARCHIVES[change](content, draw), f"archive: {change}") if change else (content, what)


def _in_records(content: bytes, offset: int, value: bytes) -> bytes:
    """Return a zip archive with other bytes at an offset of each record of its directory, and of the headers."""
    changed = bytearray(content)
    for mark, shift in ((b"PK\1\2", 0), (b"PK\3\4", -2)):
        at = -1
        while (at := content.find(mark, at + 1)) >= 0:
            changed[at + offset + shift : at + offset + shift + len(value)] = value
    return bytes(changed)


ARCHIVES: dict[str, Callable[[bytes, Random], bytes]] = {
    "twice": lambda content, draw: content,
    "encrypted": lambda content, draw: _in_records(content, 8, b"\1\0"),
    "method": lambda content, draw: _in_records(content, 10, struct.pack("<H", draw.choice([0, 8, 9, 12, 14, 93, 99]))),
    "sizes": lambda content, draw: _in_records(content, 20, struct.pack("<LL", draw.choice([0, 1, 2**32 - 1]), 2**31)),
    "version": lambda content, draw: _in_records(content, 6, b"\xff\0"),
    "directory cut off": lambda content, draw: content[: content.rfind(b"PK\1\2") + draw.choice([0, 10, 46])],
    "end moved": lambda content, draw: content[:-22] + content[-22:-6] + struct.pack("<LH", draw.randrange(2**32), 0),
    "far away": lambda content, draw: directory_alone(b"mu.npy", 1, draw.choice([2**40, 2**63 - 1, 2**63, 2**64 - 1])),
    "in front": lambda content, draw: b"#!/bin/sh\n" * draw.choice([1, 1000]) + content,
    "in data": lambda content, draw: content[:200] + bytes([content[200] ^ 1]) + content[201:],
}


def hostile_record(draw: Random, place: Place) -> tuple[bytes, str]:
    """Return a .pkl file of statistics whose records of arrays are hostile, and the hostility in words."""
    arrays, what = moments(draw)
    if draw.random() < 0.3:
        return pickle.dumps({"fid": arrays}, protocol=draw.choice([2, 4])), what
    mean = arrays["mu"]
    shape, fortran, content, code, order = (8,), False, mean.tobytes(), "f8", "<"
    field = draw.choice(["shape", "shape", "fortran", "content", "dtype", "state", "order", "outside"])
    value = draw.choice([*SHAPES, *VALUES, torch.zeros(3), torch.zeros(2**20, dtype=torch.uint8), bytes(2**20)])
    if field == "content":
        content = draw.choice([value, bytes(10), list(content), torch.frombuffer(bytearray(64), dtype=torch.uint8)])
    elif field == "dtype":
        code = draw.choice(["O8", "f4", "f2", "V2147483647", "S4000000000", "M8", "x", value])
    elif field == "order":
        order = draw.choice([">", "|", "=", "", None, [], value])
    shape, fortran = (value if field == "shape" else shape), (value if field == "fortran" else fortran)
    kind: Any = Recorded(np.dtype, (code, False, True), (3, order, None, None, None, -1, -1, 0))
    state = value if field == "state" else (1, shape, kind, fortran, content)
    build = np.zeros(1).__reduce__()[0]
    record = Recorded(build, (np.ndarray, (0,), b"b"), state)
    held = {"mu": record, "sigma": arrays["sigma"]}
    outside = draw.choice(
        [held, {"fid": value}, [held], {"fid": {"mu": value}}, {"a\nb" * 99: 0}, {10**5000: 0}, value]
    )
    return pickle.dumps(outside if field == "outside" else {"fid": held}), f"{field} {value!r:.60}"


def hostile_pkl(draw: Random, place: Place) -> tuple[bytes, str]:
    """Return a .pkl file of statistics that is hostile, and the hostility in words."""
    kind = draw.choice(["record"] * 6 + ["code", "bomb", "opcodes", "settings", "archive", "damaged"])
    if kind == "record":
        return hostile_record(draw, place)
    return pickles.KINDS[kind](place, draw, (place.valid / "real.pkl").read_bytes()), kind


def ours(draw: Random, place: Place) -> tuple[bytes, str]:
    """Return a .safetensors file of statistics that is hostile, and the hostility in words."""
    content = (place.valid / "real.safetensors").read_bytes()
    if draw.random() < 0.1:
        return content, "sparse"
    return damaged_tensors(content, draw) if draw.random() < 0.5 else hostile_facts(content, draw, "reference")


def references(draw: Random, place: Place) -> Call:
    """Prepare statistics of real images, and a command that compares samples with them."""
    ending, make = draw.choice([(".npz", hostile_npz), (".pkl", hostile_pkl), (".safetensors", ours)])
    file = place.given / f"{draw.choice(NAMES)}{ending}"
    if draw.random() < 0.1:
        shutil.copy2(place.valid / f"real{ending}", file)
        what = special(file, draw, place.guard)
    else:
        content, what = make(draw, place)
        file.write_bytes(content)
        if what == "sparse":
            what = sparse(file, draw.choice(["mean", "covariance", "features"]))
    evil(place.given, place)
    what = f"{file.name}: {what}"
    if draw.random() < 0.5:
        run = str(place.take("measured"))
        command = ["evaluate", run, "--trust-code", "--reference", str(file), "--student-only"]
        return Call(command, ["in/measured"], what)
    command = ["train", str(place.valid / "measured.yaml"), f"evaluation.reference={json.dumps(str(file))}"]
    return Call([*command, "--folder", str(place.out / "run"), *LIMIT], [], what)


READERS = {"references": references}
