"""Files of torch.save are read as torch reads them, and take no more than they hold."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distill.pickles.files import read_saved
from distill.pickles.reader import STORAGES
from distill.saved_files import TooLarge

BASE = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
STATE: dict[str, Any] = {
    "plain": BASE,
    "view": BASE[1:, ::2],
    "transposed": BASE.T,
    "scalar": torch.tensor(2.5),
    "none": torch.zeros(0, 3),
    "parameter": nn.Parameter(BASE + 1),
    **{name: torch.ones(3, dtype=dtype) for name, dtype in STORAGES.items()},
    "nested": {"a": [BASE[0], 3, "text", None, (1.5, True)]},
}


def saved(content: Any, new: bool = True) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=new)
    return out.getvalue()


def plain(value: Any) -> Any:
    """Nested values with tensors as their dtypes and numbers."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return (value.dtype, value.tolist()) if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("new", [True, False])
def test_what_torch_saves_is_read(new: bool, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    for number, content in enumerate((STATE, network.state_dict(), OrderedDict(a=BASE), BASE, 7)):
        (tmp_path / f"{number}").write_bytes(saved(content, new))
        found, wanted = read_saved(tmp_path / f"{number}"), torch.load(tmp_path / f"{number}", weights_only=True)
        assert repr(plain(found)) == repr(plain(wanted))
    shared = read_saved(tmp_path / "0") if new else None
    assert shared is None or shared["plain"].data_ptr() == shared["transposed"].data_ptr()


def archive(change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A file of a tensor, of which members are others."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved({"a": BASE}))) as source, zipfile.ZipFile(out, "w", method) as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
    return out.getvalue()


def pickled(*opcodes: bytes) -> Callable[[str, bytes], bytes]:
    """A change that puts a program in the place of the pickle."""
    return lambda name, content: b"\x80\x02" + b"".join(opcodes) + b"." if name.endswith("data.pkl") else content


def long(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def old(change: Callable[[bytes], bytes]) -> bytes:
    return change(saved({"a": BASE}, False))


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as target:
        target.writestr("data.pkl", b"N.")
    return out.getvalue()


COUNT = b"K\x1e"  # 30 numbers
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "bytes on demand": (
        lambda: archive(pickled(b"cbuiltins\nbytearray\n(", long(2**33), b"tR")),
        "'builtins.bytearray'",
    ),
    "a tensor on demand": (lambda: archive(pickled(b"ctorch\nTensor\n(", long(2**33), b"tR")), "'torch.Tensor' is not"),
    "a call": (lambda: archive(pickled(b"cos\nsystem\n(X\x01\0\0\0xtR")), "the name 'os.system' is not allowed"),
    "a packed pickle": (
        lambda: archive(pickled(b"N0" * 2**20), zipfile.ZIP_DEFLATED),
        "it unpacks to more than it holds",
    ),
    "a packed storage": (
        lambda: archive(
            lambda name, content: bytes(2**24) if name.endswith("data/0") else content.replace(COUNT, long(2**22)),
            zipfile.ZIP_DEFLATED,
        ),
        "a storage claims 4194304 numbers of 4 bytes, and the file is smaller",
    ),
    "more numbers": (
        lambda: archive(lambda name, content: content + b"1234" if name.endswith("data/0") else content),
        "a storage claims 30 numbers of 4 bytes and has 121 bytes",
    ),
    "fewer numbers": (
        lambda: archive(lambda name, content: content[4:] if name.endswith("data/0") else content),
        "a storage claims 30 numbers of 4 bytes and has 116 bytes",
    ),
    "big endian": (
        lambda: archive(lambda name, content: b"big" if name.endswith("byteorder") else content),
        "its numbers are not in the order of this machine",
    ),
    "no folder": (lambda: zipped(), "it is no zip file of torch.save"),
    "negated": (lambda: saved({"a": torch.imag(BASE.cfloat().conj())}), "a tensor is not in torch's format"),
    "sparse": (lambda: saved({"a": BASE.to_sparse()}), "the name 'torch._utils._rebuild_sparse_tensor' is not allowed"),
    "an attribute": (lambda: archive(pickled(b"}}b")), "dict is given a state"),
    "cut short": (lambda: saved({"a": BASE})[:-9], "it is no zip file, or has more behind its end"),
    "old and cut short": (lambda: old(lambda made: made[:-1]), "a storage claims 30 numbers of 4 bytes and has 119"),
    "old, of many numbers": (
        lambda: old(lambda made: made.replace(COUNT, long(2**40))),
        "a storage claims 1099511627776 numbers of 4 bytes, and the file is smaller",
    ),
    "old, with another magic": (lambda: pickle.dumps(1, 2) * 3, "a storage is not in torch's format"),
    "no pickle at all": (lambda: b"<!DOCTYPE html>", "at position 0, opcode b'<' unknown"),
}


@pytest.mark.parametrize("how", FILES)
def test_what_takes_more_than_it_holds_is_refused(how: str, tmp_path: Path) -> None:
    make, message = FILES[how]
    (tmp_path / "a.pth").write_bytes(make())
    with pytest.raises(Exception) as caught:
        read_saved(tmp_path / "a.pth")
    assert message in str(caught.value)


def test_no_regular_file_is_opened(tmp_path: Path) -> None:
    with pytest.raises(TooLarge, match="it is no regular file"):
        read_saved(tmp_path)
