"""A published checkpoint takes memory and time in proportion to its size, whatever its opcodes ask for."""

from __future__ import annotations

import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill import UserError
from distill.pickles.reader import MAX_OPCODES
from distill.teachers import read_published
from tests.distill.teachers.test_edm import SONG, build
from tests.distill.teachers.test_published import HEAD, claim
from tests.limited import limited
from tests.published import Record, checkpoint, dump, names

MEGABYTE = 2**20


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def remembered(value: bytes, index: int = 0) -> bytes:
    """Opcodes that make a value and remember it."""
    return value + b"r" + struct.pack("<I", index) + b"0"


RECALLED = b"j" + struct.pack("<I", 0)


def repeated(call: bytes, content: bytes, times: int) -> bytes:
    """A list of the results of a call with the remembered content, over and over."""
    return b"\x80\x04" + remembered(content) + b"](" + (call + RECALLED + b"\x85R") * times + b"e."


def doubled(levels: int, inner: bytes = b"K\x01\x85") -> bytes:
    """A tuple of two of the tuple before, over and over: 2 ** levels entries."""
    return inner + b"2\x86" * levels


def setting(value: bytes, key: str = "channel_mult") -> bytes:
    """A checkpoint with opcodes in place of an argument of the network."""
    whole = dump(checkpoint(build(SONG).network, **{key: "THE PLACE OF IT"}))  # type: ignore[arg-type]
    place = b"\x8c\x0fTHE PLACE OF IT"
    assert whole.count(place) == 1
    return whole.replace(place, value)  # frames then have wrong lengths, which the reader does not look at


def shared_views() -> bytes:
    """A checkpoint whose weights are all views of one storage, which is as large as the largest of them."""
    module: nn.Module = build(SONG).network  # type: ignore[assignment]
    shared = Storage(max(value.numel() for value in module.state_dict().values()))
    stream = io.BytesIO()

    class Pickler(pickle.Pickler):
        """Writes each weight as a view of the storage."""

        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, Tensor):
                return torch._utils._rebuild_tensor_v2, (shared, 0, tuple(obj.shape), obj.stride(), False, {})
            return NotImplemented

    with names():
        Pickler(stream, 4).dump(checkpoint(module))  # type: ignore[arg-type]
    return stream.getvalue()


class Storage:
    """A storage of zeros."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __reduce__(self) -> Any:
        head = b"".join([*HEAD, claim(self.count), pickle.dumps(["0"], 2)])
        return torch.storage._load_from_bytes, (head + struct.pack("<q", self.count) + bytes(4 * self.count),)


def storage(numbers: int) -> bytes:
    """Opcodes of the bytes of a storage."""
    head = b"".join([*HEAD, claim(numbers), pickle.dumps(["0"], 2)])
    content = head + struct.pack("<q", numbers) + bytes(4 * numbers)
    return b"B" + struct.pack("<I", len(content)) + content


def named(levels: int, length: int) -> Any:
    """Modules inside modules, whose names are one long text that is written once."""
    label = "n" * length
    inner: Any = Record("Linear", _parameters={}, _buffers={}, _modules={})
    for _ in range(levels):
        inner = Record("Linear", _parameters={}, _buffers={}, _modules={label: inner})
    whole = checkpoint(build(SONG).network)  # type: ignore[arg-type]
    whole["ema"].state["_modules"]["model"].state["_modules"]["more"] = inner
    return dump(whole)


CALLS = "its calls take more than it holds"


def files() -> dict[str, tuple[bytes, str]]:
    """Return files out of proportion, each with its message."""
    return {
        "one storage and many weights": (shared_views(), "weights: they share their numbers, and are larger together"),
        "one storage made many times": (
            repeated(name("torch.storage", "_load_from_bytes"), storage(2**20), 2_000),
            CALLS,
        ),
        "one text encoded many times": (
            b"\x80\x04"
            + remembered(text("x" * MEGABYTE))
            + b"]("
            + (name("_codecs", "encode") + RECALLED + text("latin1") + b"\x86R") * 3_000
            + b"e.",
            CALLS,
        ),
        "one list made a set many times": (
            repeated(
                name("builtins", "set"),
                b"](" + b"".join(b"J" + struct.pack("<i", i) for i in range(200_000)) + b"e",
                2_000,
            ),
            CALLS,
        ),
        "one list as every pair": (
            b"\x80\x04"
            + remembered(b"](" + b"N" * 500_000 + b"e")
            + name("collections", "OrderedDict")
            + b"]("
            + RECALLED * 10_000
            + b"e\x85R.",
            "too many values to unpack",
        ),
        "many empty sets": (b"\x80\x04(" + b"\x8f" * 3_000_000 + b"t.", f"more than {MAX_OPCODES:,} opcodes"),
        "many marks": (b"\x80\x04" + b"(" * 3_000_000 + b".", f"more than {MAX_OPCODES:,} opcodes"),
        "many nested lists": (b"\x80\x04" + b"]" * 3_000_000 + b".", f"more than {MAX_OPCODES:,} opcodes"),
        "many opcodes in a storage": (
            b"\x80\x04"
            + name("torch.storage", "_load_from_bytes")
            + b"B"
            + struct.pack("<I", 5_000_001)
            + b"]" * 5_000_000
            + b".\x85R.",
            "it has more than 1,000 opcodes",
        ),
        "a deep tuple": (b"\x80\x04K\x01" + b"\x85" * 1_900_000 + b".", "must hold a dict"),
        "doubled tuples as the checkpoint": (b"\x80\x04" + doubled(500) + b".", "must hold a dict"),
        "doubled tuples as a setting": (setting(doubled(500)), "channel_mult: must be something like"),
        "doubled tuples as a type": (setting(doubled(500), "embedding_type"), "embedding_type: must be one of"),
        "doubled tuples as a number": (setting(doubled(500), "sigma_data"), "sigma_data: must be positive"),
        "doubled tuples as a class": (
            dump(checkpoint(build(SONG).network)).replace(b"\x8c\x0aEDMPrecond", doubled(500)),  # type: ignore[arg-type]
            "'ema' is no record of a module",
        ),
        "long names of deep modules": (named(30, MEGABYTE), "a module has a name of more than 1,000 characters"),
        "a tensor of many dimensions": (
            b"\x80\x04"
            + name("torch._utils", "_rebuild_tensor_v2")
            + b"("
            + name("torch.storage", "_load_from_bytes")
            + storage(4)
            + b"\x85R"
            + b"K\x00"
            + b"("
            + b"\x8a\x09"
            + b"\xff" * 8
            + b"\x00"
            + b"2" * 300_000
            + b"t2"
            + b"\x89}tR.",
            "a tensor is not in torch's format",
        ),
        "a size of a million digits": (
            b"\x80\x04"
            + name("torch._utils", "_rebuild_tensor_v2")
            + b"("
            + name("torch.storage", "_load_from_bytes")
            + storage(4)
            + b"\x85R"
            + b"K\x00"
            + b"\x8b"
            + struct.pack("<i", 2**21)
            + b"\x7f" * 2**21
            + b"2\x862"
            + b"\x89}tR.",
            "a tensor is not in torch's format",
        ),
    }


def test_what_a_checkpoint_takes_is_in_proportion(tmp_path: Path) -> None:
    """Each in one line, within ten seconds, and all in a process that may take 1 GB beyond what it has imported."""
    made = files()
    for number, (content, _) in enumerate(made.values()):
        (tmp_path / f"{number}.pkl").write_bytes(content)
    program = f"""
import time
from distill.errors import UserError
from distill.teachers import read_published
from tests.limited import limit
limit(1024)
for number in range({len(made)}):
    begin = time.process_time()
    try:
        read_published({str(tmp_path)!r} + f"/{{number}}.pkl", "edm")
        print("read")
    except UserError as error:
        print(int(time.process_time() - begin), error)
"""
    lines = limited(program, 300).splitlines()
    assert len(lines) == len(made)
    for line, (how, (_, message)) in zip(lines, made.items(), strict=True):
        seconds, _, said = line.partition(" ")
        assert message in said and int(seconds) < 10 and len(said) < 500, (how, line)


def test_a_fifo_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pkl")
    with pytest.raises(UserError, match=r"a\.pkl': it is no regular file$"):
        read_published(tmp_path / "a.pkl", "edm")
