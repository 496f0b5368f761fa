"""Hostile weights of Inception, and hostile statistics of a teacher."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load, save

from tests.hostile import pickles
from tests.hostile.mutate import VALUES, damaged, special
from tests.hostile.pictures import once
from tests.hostile.trees import damaged_tensors, evil, hostile_facts, sparse
from tests.hostile.trial import Call, Place


def odd_weights(draw: Random, place: Place) -> tuple[bytes, str]:
    """Return a .pth file of odd weights of Inception, and the oddity in words."""
    state = torch.load(place.valid / "inception.pth", weights_only=True)
    name = draw.choice([key for key in state if not key.endswith("tracked")])
    value = state[name]
    odd: dict[str, Callable[[], Any]] = {
        "parameter": lambda: torch.nn.Parameter(value),
        "sparse": lambda: value.to_sparse(),
        "integers": lambda: value.long(),
        "complex": lambda: value.to(torch.complex64),
        "bfloat16": lambda: value.bfloat16(),
        "float8": lambda: value.to(torch.float8_e4m3fn),
        "quantized": lambda: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
        "meta": lambda: value.to("meta"),
        "NaN": lambda: torch.full_like(value, math.nan),
        "infinite": lambda: torch.full_like(value, -math.inf),
        "3e38": lambda: torch.full_like(value, 3e38),
        "1e300": lambda: torch.full_like(value, 1e300, dtype=torch.float64),
        "repeated": lambda: torch.zeros(()).expand(2**20, 2**20),
        "empty": lambda: value[:0],
        "other shape": lambda: value[None],
        "transposed": lambda: value.transpose(0, -1),
        "conjugate": lambda: value.to(torch.complex64).conj(),
        "negated": lambda: torch.imag(value.to(torch.complex64).conj()),
        "no tensor": lambda: draw.choice(VALUES),
    }
    what = draw.choice(
        [*odd, "key", "keys", "attributes", "wrapped", "list", "old", "old", "all halves", "module names"]
    )
    state = OrderedDict(state) | ({name: odd[what]()} if what in odd else {})
    if what == "key":
        state[draw.choice([1, "x", "", "\ud800", ("a",), None, "a" * 10**6])] = value
    elif what == "keys":
        state = OrderedDict({draw.choice([n, str(n)]): value for n, value in enumerate(state.values())})
    elif what == "attributes":
        state._metadata = draw.choice([*VALUES, {"": 1}, {"": {"version": "x"}}])  # type: ignore[attr-defined]
    elif what == "all halves":
        kind = draw.choice([torch.half, torch.bfloat16])
        state = OrderedDict((key, one.to(kind) if one.is_floating_point() else one) for key, one in state.items())
    stream = BytesIO()
    content = {"wrapped": {"state_dict": state}, "list": [value]}.get(what, state)
    torch.save(content, stream, _use_new_zipfile_serialization=what != "old")
    made = stream.getvalue()
    return damaged(made, draw) if what == "old" and draw.random() < 0.6 else (made, f"{name}: {what}")


def weights_bomb(kind: str, file: Path, megabytes: int = 6 * 2**10) -> bytes:
    """Return a .pth file that grows: a pickle or a storage that packs to a thousandth, or calls that take memory."""
    folder = file.stem
    with zipfile.ZipFile(file) as valid:
        listing = valid.read(f"{folder}/data.pkl")
    room = b"\x80\x02cbuiltins\nbytearray\n"
    calls = {
        "one call": room + b"(" + pickle.LONG1 + b"\x08" + struct.pack("<Q", megabytes * 2**20) + b"tR.",
        "many calls": room + b"q\0(J" + struct.pack("<i", 2**20) + b"tRq\1](" + b"h\0(h\1tR" * megabytes + b"e.",
    }
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(f"{folder}/version", "3\n")
        archive.writestr(f"{folder}/byteorder", "little")
        if kind != "pickle":
            archive.writestr(f"{folder}/data.pkl", calls.get(kind, listing))
        with archive.open(f"{folder}/{'data.pkl' if kind == 'pickle' else 'data/0'}", "w", force_zip64=True) as member:
            for _ in range(1 if kind in calls else megabytes):
                member.write(b"N" * 2**20)
    return stream.getvalue()


def inception(draw: Random, place: Place) -> Call:
    """Prepare weights of Inception, and a command that takes features with them."""
    ending = draw.choice([".safetensors", ".pth", ".pth"])
    file = place.given / f"weights{draw.choice([ending] * 9 + ['', '.npz', '.bin'])}"
    valid = place.valid / f"inception{ending}"
    kind = draw.choice(
        ["damaged"] * 2 + ["special"] + (["odd"] * 4 + ["pickle", "bomb"] if ending == ".pth" else ["lie"] * 4)
    )
    if kind == "special":
        shutil.copy2(valid, file)
        what = special(file, draw, place.guard)
    else:
        if kind == "odd":
            content, what = odd_weights(draw, place)
        elif kind == "lie":
            content, what = damaged_tensors(valid.read_bytes(), draw)
        elif kind == "bomb":
            what = draw.choice(["pickle", "storage", "one call", "many calls"])
            content = once(place, f"{what}.pth", lambda: weights_bomb(what, valid))
        elif kind == "pickle":
            with zipfile.ZipFile(valid) as archive:
                content = pickles.archive(place, draw, archive.read("inception/data.pkl"))
            what = "pickle"
        else:
            content, what = damaged(valid.read_bytes(), draw)
        file.write_bytes(content)
    evil(place.given, place)
    command = ["reference", str(place.valid / "pictures/a"), "--resolution", "8", "--out", f"{place.out}/x.safetensors"]
    command += ["--protocol", draw.choice(["fid10k", "clean_fid10k"])]
    return Call(command, [], f"{file.name}: {what}", {"DISTILL_INCEPTION": str(file)})


def statistics(draw: Random, place: Place) -> Call:
    """Prepare the statistics of a teacher, and a command that samples it by them."""
    file, content = place.given / "statistics.safetensors", (place.valid / "statistics.safetensors").read_bytes()
    kind = draw.choice(["lie", "lie", "facts", "special", "levels", "sparse"])
    if kind == "special":
        file.write_bytes(content)
        what = special(file, draw, place.guard)
    else:
        if kind == "lie":
            content, what = damaged_tensors(content, draw)
        elif kind == "facts":
            content, what = hostile_facts(content, draw, "")
        elif kind == "levels":
            content, what = hostile_levels(content, draw)
        else:
            what = kind
        file.write_bytes(content)
        if kind == "sparse":
            what = sparse(file, draw.choice(["log_snr", "l", "s", "b"]))
    evil(place.given, place)
    sampler = f"{{name: dpm_v3, order: {draw.choice([1, 2, 3])}, statistics: {file}}}"
    steps = ["--sampler", sampler, "--evaluations", draw.choice(["1", "4", "9"])]
    command = ["sample", str(place.valid / "edm"), "--count", "2", "--out", str(place.out / "sample.png"), *steps]
    return Call(command, [], what)


def hostile_levels(content: bytes, draw: Random) -> tuple[bytes, str]:
    """Return statistics at other levels, or with large numbers in them, and the change in words."""
    tensors = load(content)
    (length,) = struct.unpack("<Q", content[:8])
    facts = json.loads(content[8 : 8 + length])["__metadata__"]
    name, value = draw.choice(["log_snr", "log_snr", "l", "s", "b"]), 10.0 ** draw.choice([-300, 2, 3, 6, 12, 30, 300])
    tensors[name] = tensors[name].double() * value
    if name != "log_snr":
        tensors[name] = tensors[name].float().nan_to_num(posinf=3e38, neginf=-3e38)
    if draw.random() < 0.2:
        levels = draw.choice([2, 5000])
        tensors = {one: two[:1].expand(levels, *two.shape[1:]).contiguous() for one, two in tensors.items()}
        tensors["log_snr"] = torch.linspace(-6, 6, levels, dtype=torch.float64)
    return save(tensors, facts), f"{name} x {value}"


READERS = {"weights of Inception": inception, "sampler statistics": statistics}
