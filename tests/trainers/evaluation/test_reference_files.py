"""The statistics of real images as others publish them, and hostile files of them."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from distill.errors import UserError
from trainers.evaluation.references import read_reference


def moments() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    features = np.random.default_rng(0).standard_normal((50, 6))
    return features.mean(axis=0), np.cov(features, rowvar=False)


@pytest.mark.parametrize("fortran", [False, True])
def test_statistics_of_edm(tmp_path: Path, fortran: bool) -> None:
    mean, covariance = moments()
    file = tmp_path / "cifar10-32x32.npz"
    np.savez(file, mu=mean, sigma=np.asfortranarray(covariance) if fortran else covariance)
    found = read_reference(file, "fid")
    assert (str(found.reference), found.resolution, found.reference.features) == ("cifar10-32x32", (32, 32), None)
    np.testing.assert_array_equal(found.reference.moments.mean.numpy(), mean)
    np.testing.assert_array_equal(found.reference.moments.covariance.numpy(), covariance)
    with pytest.raises(UserError, match=r"is of fid, the protocol is clean_fid"):
        read_reference(file, "clean_fid")


@pytest.mark.parametrize("protocol", [2, 4])
def test_statistics_of_edm2(tmp_path: Path, protocol: int) -> None:
    mean, covariance = moments()
    content = {"fid": {"mu": mean, "sigma": covariance}, "fd_dinov2": {"mu": mean + 1, "sigma": 2 * covariance}}
    file = tmp_path / "img512.pkl"
    file.write_bytes(pickle.dumps(content, protocol=protocol))
    found = read_reference(file, "fd_dinov2")
    assert found.resolution == (512, 512)
    np.testing.assert_array_equal(found.reference.moments.mean.numpy(), mean + 1)
    np.testing.assert_array_equal(found.reference.moments.covariance.numpy(), 2 * covariance)
    with pytest.raises(UserError, match="holds fid, fd_dinov2, expected clean_fid"):
        read_reference(file, "clean_fid")


def npz(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return out.getvalue()


def npy(array: Any, shape: tuple[int, ...] | None = None) -> bytes:
    """An array whose header claims another shape."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        out, {"descr": "<f8", "fortran_order": False, "shape": shape or np.asarray(array).shape}
    )
    return out.getvalue() + np.asarray(array, dtype="<f8").tobytes()


def zipped(method: int = zipfile.ZIP_STORED, offset: int = 0, value: bytes = b"") -> bytes:
    """Good statistics in a zip file, with other bytes at an offset of each record of its directory."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("mu.npy", npy(np.zeros(3)))
        archive.writestr("sigma.npy", npy(np.eye(3)))
    content = bytearray(out.getvalue())
    at = content.find(b"PK\1\2")
    while at >= 0:
        content[at + offset : at + offset + len(value)] = value
        at = content.find(b"PK\1\2", at + 4)
    return bytes(content)


def headed(text: str, start: bytes = b"\x93NUMPY\1\0") -> bytes:
    """Statistics whose mean has another header."""
    length = len(text).to_bytes(2 if start.endswith(b"\1\0") else 4, "little")
    return npz(mu=start + length + text.encode() + np.zeros(3).tobytes(), sigma=npy(np.eye(3)))


HEADER = "{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }\n"


def test_the_good_forms_are_read(tmp_path: Path) -> None:
    """The tests of what is refused change these files."""
    files = [zipped(), zipped(zipfile.ZIP_DEFLATED), headed(HEADER), headed(HEADER, b"\x93NUMPY\2\0")]
    for content in (*files, headed(HEADER.replace("\n", 50 * " " + "\n"), b"\x93NUMPY\3\0")):
        (tmp_path / "a.npz").write_bytes(content)
        assert torch.equal(
            read_reference(tmp_path / "a.npz", "fid").reference.moments.covariance, torch.eye(3).double()
        )
    assert read_reference(write_facts(tmp_path / "a.safetensors"), "fid").reference.count == 9
    (tmp_path / "a.pkl").write_bytes(pickled())
    assert torch.equal(read_reference(tmp_path / "a.pkl", "fid").reference.moments.mean, torch.zeros(3).double())


OTHER_FORM = "mu is no array of float32 or float64 numbers with one or two dimensions$"
NPZ: dict[str, tuple[Callable[[], bytes], str]] = {
    "encrypted": (lambda: zipped(offset=8, value=b"\1\0"), "its members are encrypted, or neither stored nor defl"),
    "lzma": (lambda: zipped(zipfile.ZIP_LZMA), "its members are encrypted, or neither stored nor deflated$"),
    "no such method": (lambda: zipped(offset=10, value=b"\x63\0"), "its members are encrypted, or neither stored"),
    "of the future": (lambda: zipped(offset=6, value=b"\xff\0"), "zip file version 25.5$"),
    "far away": (lambda: zipped(offset=42, value=b"\xff\xff\xff\xfe"), "Truncated file header$"),
    "no deflated data": (
        lambda: zipped(zipfile.ZIP_DEFLATED)[:36] + b"\xff" * 8 + zipped(zipfile.ZIP_DEFLATED)[44:],
        "Error -3 while decompressing data",
    ),
    "a flipped bit": (lambda: zipped().replace(bytes(24), bytes(23) + b"\1", 1), "Bad CRC-32 for file 'mu.npy'$"),
    "behind its end": (lambda: zipped() + b"more", "it is no zip file, or has more behind its end$"),
    "objects": (lambda: headed(HEADER.replace("<f8", "|O")), OTHER_FORM),
    "half": (lambda: headed(HEADER.replace("<f8", "<f2")), OTHER_FORM),
    "three dimensions": (lambda: headed(HEADER.replace("(3,)", "(1, 1, 3)")), OTHER_FORM),
    "a shape without numbers": (lambda: headed(HEADER.replace("(3,)", "('3',)")), OTHER_FORM),
    "a call": (lambda: headed(HEADER.replace("'<f8'", "open('x', 'w')")), OTHER_FORM),
    "a deep header": (lambda: headed("-" * 9000 + "1"), OTHER_FORM),
    "a header without end": (lambda: headed("{'" + "''"), OTHER_FORM),
    "a long header": (lambda: headed(" " * 2**25, b"\x93NUMPY\2\0"), OTHER_FORM),
    "another magic": (lambda: headed(HEADER, b"\x93NUMPX\1\0"), OTHER_FORM),
    "more numbers": (lambda: npz(mu=npy(np.zeros(4), (3,)), sigma=npy(np.eye(3))), "an array goes on behind its end$"),
    "NaN": (lambda: npz(mu=npy([np.nan]), sigma=npy([[1]])), "a.npz': moments: NaN, infinity or numbers beyond"),
    "not symmetric": (lambda: npz(mu=npy([0, 0]), sigma=npy([[1, 1], [0, 1]])), "a covariance that is not symmetric"),
}


@pytest.mark.parametrize("how", NPZ)
def test_hostile_archives_are_refused(how: str, tmp_path: Path) -> None:
    make, message = NPZ[how]
    (tmp_path / "a.npz").write_bytes(make())
    with pytest.raises(UserError, match=message) as caught:
        read_reference(tmp_path / "a.npz", "fid")
    assert str(caught.value).startswith("reference: ") and "\n" not in str(caught.value)


class Recorded:
    """Pickled as a call with a state."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


def pickled(
    shape: Any = (3,), fortran: Any = False, content: Any = bytes(24), order: Any = "<", code: Any = "f8"
) -> bytes:
    """Statistics of EDM2 in which the record of the mean has other fields."""
    dtype = Recorded(np.dtype, (code, False, True), (3, order, None, None, None, -1, -1, 0))
    build = np.zeros(1).__reduce__()[0]
    mean = Recorded(build, (np.ndarray, (0,), b"b"), (1, shape, dtype, fortran, content))
    return pickle.dumps({"fid": {"mu": mean, "sigma": np.eye(3)}})


NO_ARRAY = "Object where an array of numbers was expected$"
RECORDS: dict[str, tuple[Callable[[], bytes], str]] = {
    **{
        f"shape {shape!r:.20}": (lambda shape=shape: pickled(shape), message)  # type: ignore[misc]
        for shape, message in (
            ((2**63,), r"an array <f8 \(9223372036854775808,\), expected at most \[4096, 4096\]$"),
            ((3.0,), "an array <f8"),
            ((True, 3), "an array <f8"),
            (("3",), "an array <f8"),
            ((float("nan"),), "an array <f8"),
            ((), "an array <f8"),
            ((1, 1, 3), "an array <f8"),
            ((-3,), "an array <f8"),
            ([3], NO_ARRAY),
            (3, NO_ARRAY),
            (torch.zeros(2**20), NO_ARRAY),
        )
    },
    "fortran": (lambda: pickled(fortran=torch.zeros(2)), NO_ARRAY),
    "numbers for bytes": (lambda: pickled(content=[0] * 24), NO_ARRAY),
    "fewer bytes": (lambda: pickled(content=bytes(23)), "an array is cut short$"),
    "more bytes": (lambda: pickled(content=bytes(25)), "an array goes on behind its end$"),
    "big endian": (lambda: pickled(order=">"), NO_ARRAY),
    "objects": (lambda: pickled(code="O8"), "an array <O8"),
    "no text": (lambda: pickled(code=8), NO_ARRAY),
    "NaN": (lambda: pickled(content=b"\xff" * 24), "a.pkl': moments: NaN, infinity or numbers beyond float32"),
    "no moments": (lambda: pickle.dumps({"fid": {"mu": np.zeros(3)}}), "dict under fid, expected mu and sigma$"),
    "a number": (lambda: pickle.dumps({"fid": 3}), "int under fid, expected mu and sigma$"),
    "other text": (lambda: pickle.dumps({"a\nb": 3}), r"holds a\?b, expected fid$"),
    "long numbers": (lambda: pickle.dumps({10**5000: 3}), r"cannot read '.*a.pkl': Exceeds the limit \(4300 digits\)"),
    "a call": (
        lambda: pickle.dumps({"fid": Recorded(eval, ("1",))}),
        "reference: cannot read .* 'builtins.eval' is not",
    ),
}


@pytest.mark.parametrize("how", RECORDS)
def test_hostile_records_are_refused(how: str, tmp_path: Path) -> None:
    make, message = RECORDS[how]
    (tmp_path / "a.pkl").write_bytes(make())
    with pytest.raises(UserError, match=message) as caught:
        read_reference(tmp_path / "a.pkl", "fid")
    assert str(caught.value).startswith("reference: ") and "\n" not in str(caught.value)


FACTS = {
    "format": "distill reference 1",
    "protocol": "fid",
    "name": "noise",
    "count": 9,
    "resolution": [8, 8],
    "content": "a hash",
}
GOOD = {"mean": torch.zeros(3).double(), "covariance": torch.eye(3).double(), "features": torch.zeros(5, 3)}


def write_facts(file: Path, changes: dict[str, Any] | str = "", **tensors: Tensor) -> Path:
    """Write statistics as `distill reference` does, with other facts or tensors."""
    facts = changes if isinstance(changes, str) and changes else json.dumps({**FACTS, **dict(changes or {})})
    save_file({**GOOD, **tensors}, file, {"reference": facts})
    return file


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("[]", "must be an object"),
        ("{", "it is no JSON"),
        ("[" * 100_000, "it is no JSON: recursion limit"),
        ({"count": "1e999"}, "key 'count': must be a valid integer, got '1e999'"),
        ({"count": True}, "key 'count': must be a valid integer"),
        ({"count": -9}, "key 'count': must be greater than or equal to 2, got -9"),
        ({"count": 4}, r"expected mean \[D\] and covariance \[D, D\] of F64, features \[at most 4, D\] of F32"),
        ({"resolution": 0}, "key 'resolution': must be a valid array, got 0"),
        ({"resolution": [8]}, "key 'resolution.1': is missing"),
        ({"resolution": [0, 8]}, "key 'resolution.0': must be greater than or equal to 1, got 0"),
        ({"resolution": {"0": 8, "1": 8}}, "key 'resolution': must be a valid array"),
        ({"name": ["noise"]}, "key 'name': must be a valid string"),
        ({"protocol": None}, "key 'protocol': must be a valid string"),
        ({"content": 7}, "key 'content': must be a valid string"),
        ({"format": "2"}, "key 'format': must be 'distill reference 1', got '2'"),
        ({"protocol": "a\nb"}, r"is of a\?b, the protocol is fid$"),
    ],
)
def test_facts_of_other_types_are_refused(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_reference(write_facts(tmp_path / "a.safetensors", changes), "fid")
    assert str(caught.value).startswith("reference: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"mean": torch.zeros(3)}, r"its tensors are \{.*, expected mean \[D\] and covariance \[D, D\] of F64"),
        ({"covariance": torch.eye(2).double()}, "its tensors are"),
        ({"features": torch.zeros(5, 3, dtype=torch.int64)}, "its tensors are"),
        ({"features": torch.zeros(5, 3, 1)}, "its tensors are"),
        ({"features": torch.zeros(10, 3)}, "its tensors are"),
        ({"more": torch.zeros(1)}, "its tensors are"),
        ({"features": torch.full((5, 3), torch.nan)}, "a.safetensors' holds features that are not finite$"),
        ({"covariance": -torch.eye(3).double()}, "moments: a covariance with eigenvalues below 0 given$"),
    ],
)
def test_tensors_of_other_forms_are_refused(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_reference(write_facts(tmp_path / "a.safetensors", **tensors), "fid")


def test_a_name_is_shown_on_one_line(tmp_path: Path) -> None:
    found = read_reference(write_facts(tmp_path / "a.safetensors", {"name": "a\n\x1b[2J" + "b" * 999}), "fid")
    assert found.reference.name == "a??[2J" + "b" * 193 + "…"


class Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.file), "w")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npz", lambda: b"PK", "cannot read"),
        ("a.npz", lambda: npz(mu=npy(np.zeros(3))), "cannot read .* no item named 'sigma.npy'"),
        ("a.npz", lambda: npz(mu=npy(np.zeros(3)), sigma=npy(np.zeros((2, 2)))), r"mu \[3\] and sigma \[2, 2\]"),
        ("a.npz", lambda: npz(mu=npy(np.zeros(3), (2**40,)), sigma=b""), r"expected at most \[4096, 4096\]"),
        ("a.npz", lambda: npz(mu=npy(np.zeros(3), (4000,)), sigma=b""), "an array is cut short"),
        ("a.pkl", lambda: b"\x80\x04", "cannot read"),
        ("a.pkl", lambda: pickle.dumps({"fid": [1, 2]}), "cannot read"),
        ("a.safetensors", lambda: b"", "cannot read"),
        ("a.csv", lambda: b"", "must end in .safetensors, .npz, .pkl"),
    ],
)
def test_damaged_statistics_are_refused(tmp_path: Path, name: str, content: Callable[[], bytes], message: str) -> None:
    (tmp_path / name).write_bytes(content())
    with pytest.raises(UserError, match=message) as caught:
        read_reference(tmp_path / name, "fid")
    assert "\n" not in str(caught.value)


def test_missing_statistics_say_how_to_compute_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file '.*a.npz'; `distill reference DATA --out .*a.safetensors` computes"):
        read_reference(tmp_path / "a.npz", "fid")
    with pytest.raises(
        UserError, match=r"`curl --create-dirs -o .*img512.pkl https://.*/edm2/dataset-refs/img512.pkl`"
    ):
        read_reference(tmp_path / "img512.pkl", "fid")


def test_statistics_run_no_code(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"fid": Bomb(tmp_path / "ran")}))
    np.savez(tmp_path / "a.npz", mu=np.array([Bomb(tmp_path / "ran")]), sigma=np.zeros((1, 1)))
    for name in ("a.pkl", "a.npz"):
        with pytest.raises(UserError):
            read_reference(tmp_path / name, "fid")
    assert not (tmp_path / "ran").exists()
