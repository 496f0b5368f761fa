"""The statistics of real images: computed once, stored, and read as others publish them."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.errors import UserError
from distill.metrics import Extracted, Moments
from trainers.data import Dataset
from trainers.evaluation import references
from trainers.evaluation.references import check_reference, compute_reference, read_reference, write_reference

IMAGES = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
DATA = Dataset("noise", 30, (3, 8, 8), None, lambda at: IMAGES[at], content=lambda: "a hash")


@dataclass
class Corners:
    """An extractor of four pixels, which counts its images."""

    name: str = "corners"
    labels: Tensor | None = None
    logits: bool = False
    seen: int = 0

    def to(self, device: torch.device) -> Corners:
        return self

    def extract(self, images: Tensor, labelled: bool = False) -> Extracted:
        self.seen += len(images)
        return Extracted(images[:, 0, ::7, ::7].flatten(1))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "SHARD", 8)
    monkeypatch.setattr(references, "READ_AT_ONCE", 3)


def test_features_are_computed_once_and_a_kill_loses_a_shard(tmp_path: Path) -> None:
    first = Corners()
    stored = compute_reference(DATA, first, str(tmp_path), quiet=True)
    wanted = Moments.of(IMAGES[:, 0, ::7, ::7].flatten(1))
    assert first.seen == 30 and stored.reference.count == 30 and stored.resolution == (8, 8)
    torch.testing.assert_close(stored.reference.moments.covariance, wanted.covariance)
    again = Corners()
    compute_reference(DATA, again, str(tmp_path), quiet=True)
    assert again.seen == 0
    shards = sorted(tmp_path.rglob("*.safetensors"))
    assert len(shards) == 4
    shards[1].unlink()
    compute_reference(DATA, again, str(tmp_path), quiet=True)
    assert again.seen == 8
    other = replace(DATA, content=lambda: "another hash")
    compute_reference(other, again, str(tmp_path), quiet=True)
    assert again.seen == 38


def test_of_many_images_some_features_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "MOST_KEPT", 5)
    stored = compute_reference(DATA, Corners(), str(tmp_path), quiet=True)
    kept = stored.reference.features
    assert kept is not None and stored.reference.count == 30
    assert torch.equal(kept, IMAGES[DATA.order(0, torch.arange(5)), 0, ::7, ::7].flatten(1))


def test_a_stored_reference_is_read_as_it_was(tmp_path: Path) -> None:
    stored = compute_reference(DATA, Corners(), str(tmp_path), quiet=True)
    write_reference(stored, tmp_path / "out" / "noise.safetensors")
    found = read_reference(tmp_path / "out/noise.safetensors", "corners")
    assert (found.protocol, found.resolution, found.content) == ("corners", (8, 8), "a hash")
    assert str(found.reference) == "noise, 30 real"
    assert torch.equal(found.reference.moments.mean, stored.reference.moments.mean)
    assert found.reference.features is not None and stored.reference.features is not None
    assert torch.equal(found.reference.features, stored.reference.features)
    with pytest.raises(UserError, match=r"noise.safetensors' is of corners, the protocol is fid$"):
        read_reference(tmp_path / "out/noise.safetensors", "fid")


def test_statistics_of_other_images_are_refused(tmp_path: Path) -> None:
    stored, file = compute_reference(DATA, Corners(), str(tmp_path), quiet=True), Path("noise.safetensors")
    check_reference(stored, file, (3, 8, 8), DATA)
    check_reference(stored, file, (3, 8, 8), replace(DATA, read=None))  # nothing to compare with
    with pytest.raises(UserError, match="is of 8x8 pixels, the samples have 16x16"):
        check_reference(stored, file, (3, 16, 16), DATA)
    with pytest.raises(UserError, match="is of other images than data: noise"):
        check_reference(stored, file, (3, 8, 8), replace(DATA, content=lambda: "another"))


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
