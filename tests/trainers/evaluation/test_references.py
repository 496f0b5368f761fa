"""The statistics of real images: computed once, stored, and read as they were."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

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
    check_reference(stored, file, (3, 8, 8), 4, DATA)
    check_reference(stored, file, (3, 8, 8), 4, replace(DATA, read=None))  # nothing to compare with
    with pytest.raises(UserError, match="is of 8x8 pixels, the samples have 16x16"):
        check_reference(stored, file, (3, 16, 16), 4, DATA)
    with pytest.raises(UserError, match="is of 4 features, the samples have 2,048"):
        check_reference(stored, file, (3, 8, 8), 2048, DATA)
    with pytest.raises(UserError, match="is of other images than data: noise"):
        check_reference(stored, file, (3, 8, 8), 4, replace(DATA, content=lambda: "another"))


def test_features_that_are_not_finite_are_no_reference(tmp_path: Path) -> None:
    wrong = replace(DATA, read=lambda at: IMAGES[at] / 0)
    with pytest.raises(UserError, match=r"^reference: corners of noise: moments: NaN, infinity or numbers beyond"):
        compute_reference(wrong, Corners(), str(tmp_path), quiet=True)


def test_a_reference_without_content_is_of_any_images(tmp_path: Path) -> None:
    stored = compute_reference(DATA, Corners(), str(tmp_path), quiet=True)
    write_reference(replace(stored, content=None, resolution=None), tmp_path / "any.safetensors")
    found = read_reference(tmp_path / "any.safetensors", "corners")
    assert found.content is None and found.resolution is None
    check_reference(found, tmp_path, (3, 16, 16), 4, DATA)
