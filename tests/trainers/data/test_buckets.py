"""Pictures in buckets: each goes to the nearest aspect, a batch has one size, and buckets take turns."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from distill.errors import UserError
from trainers.data import Images, Mixture, scan, sources
from trainers.data.batches import Batches, BatchSizes
from trainers.data.buckets import Buckets, nearest_aspects
from trainers.data.dataset import Dataset
from trainers.data.read_ahead import Request

WIDE, TALL = (4, 8), (8, 4)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


def write(name: str, height: int, width: int, orientation: int | None = None) -> None:
    """Write a random picture of these stored sides into the folder `set`."""
    Path("set").mkdir(exist_ok=True)
    pixels = np.random.default_rng(len(name) + height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(Path("set") / name, exif=exif)
    (Path("set") / name).with_suffix(".txt").write_text(f"picture {name}")


def load(**changes: Any) -> Buckets:
    """Return the folder in buckets of 8x8, 4x8 and 8x4."""
    dataset = images(**changes).load()
    assert isinstance(dataset, Buckets)
    return dataset


def images(**changes: Any) -> Images:
    return Images("set", **{"resolution": 8, "prompt_column": "text", "buckets": (WIDE, TALL), **changes})


def write_set() -> None:
    """Write 3 square pictures, 5 wide ones and 2 tall ones, of which one of each is stored on its side."""
    for number in range(3):
        write(f"a{number}.png", 10 + number, 10)
    for number in range(4):
        write(f"b{number}.png", 8, 15 + number)
    write("c.png", 9, 18)
    write("d.jpg", 20, 10, orientation=6)  # seen, it is 10 high and 20 wide
    write("e.png", 20, 11)
    write("f.jpg", 12, 24, orientation=8)
    Path("set/c.png").unlink()
    Path("set/c.txt").unlink()


def test_the_nearest_aspect() -> None:
    """1.4 is nearer to 1 than to 2 by their ratio, and 1.42 is not; the first of two that are equally near is taken."""
    sizes = torch.tensor([[100, 140], [100, 142], [500, 3], [3, 500], [7, 7], [200, 100]])
    assert nearest_aspects(sizes, [(8, 8), WIDE, TALL, (16, 16)]).tolist() == [0, 1, 2, 1, 0, 2]


def test_pictures_go_to_buckets() -> None:
    """Pixels are those of a data set of that one size. EXIF data turn pictures, and prompts stay beside them."""
    write_set()
    dataset = load()
    assert dataset.shape == (3, 8, 8) and dataset.count == 10
    assert [(part.count, part.shape) for part in dataset.parts] == [(3, (3, 8, 8)), (5, (3, 4, 8)), (2, (3, 8, 4))]
    assert dataset.prompts is not None
    named = [prompt.split()[1] for prompt in dataset.prompts]
    assert named == ["a0.png", "a1.png", "a2.png", "b0.png", "b1.png", "b2.png", "b3.png", "d.jpg", "e.png", "f.jpg"]
    for start, part, size in ((0, dataset.parts[0], 8), (3, dataset.parts[1], WIDE), (8, dataset.parts[2], TALL)):
        alone = images(resolution=size, buckets=()).load()
        positions = torch.arange(start, start + part.count)
        assert torch.equal(dataset.images(positions), alone.images(positions))
    assert dataset.elements == (3 * 192 + 7 * 96) / 10


def test_sizes_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later start takes the kept sizes, also where their file was damaged: then they are read again."""
    write_set()
    first = [part.count for part in load().parts]
    with monkeypatch.context() as patch:
        patch.setattr(scan, "_size_of", None)
        assert [part.count for part in load().parts] == first
    (kept,) = (Path("cache") / "distill_scans").glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:-3])
    assert [part.count for part in load().parts] == first


def test_an_empty_bucket_is_told_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.png", 10, 20)
    dataset = load()
    assert [part.shape for part in dataset.parts] == [(3, 4, 8)] and dataset.shape == (3, 8, 8)
    assert "in buckets, height x width: 0 of 8x8, 1 of 4x8, 0 of 8x4" in capsys.readouterr().err


def test_mirrored_pictures_stay_in_their_bucket() -> None:
    write_set()
    dataset, once = load(flip=True), load()
    assert [part.count for part in dataset.parts] == [6, 10, 4]
    assert torch.equal(dataset.images(torch.tensor([16, 17])), once.images(torch.tensor([8, 9])))
    assert torch.equal(dataset.images(torch.tensor([18, 19])), once.images(torch.tensor([8, 9])).flip(-1))


def numbered(*counts: int) -> Buckets:
    """Data sets of 1x1xN samples that show their number among all, in a bucket for each count."""
    starts = [sum(counts[:number]) for number in range(len(counts))]

    def part(number: int) -> Dataset:
        def read(at: torch.Tensor) -> torch.Tensor:
            return (at + starts[number]).float()[:, None, None, None].expand(-1, 1, 1, number + 1)

        return Dataset("numbered", counts[number], (1, 1, number + 1), None, read)

    return Buckets.of([part(number) for number in range(len(counts))], (1, 1, 1))


@pytest.mark.parametrize("counts", [(1,), (5, 3, 2), (1, 998, 1), (7, 7), (1, 1, 1, 1)])
def test_buckets_take_turns_in_their_shares(counts: tuple[int, ...]) -> None:
    """Any batches in a row have each bucket by its share, to within one; each has its own batches in their order."""
    dataset, seen = numbered(*counts), Counter[int]()
    for batch in range(3 * sum(counts)):
        turn = dataset.turn(batch)
        number = dataset.parts.index(turn.data)
        assert turn.start == sum(counts[:number]) and turn.number == seen[number]
        seen[number] += 1
        for one, count in enumerate(counts):
            assert abs(seen[one] - (batch + 1) * count / sum(counts)) < len(counts)
    assert [seen[number] for number in range(len(counts))] == [3 * count for count in counts]


def batches(dataset: Dataset, rank: int = 0, world: int = 1, micro: int = 1, real: bool = True) -> Batches:
    return Batches(dataset, BatchSizes(4, micro), 0, torch.float32, real, rank, world, torch.device("cpu"))


@pytest.mark.parametrize("real", [True, False])
def test_a_batch_has_one_size_whatever_the_layout(real: bool) -> None:
    dataset = numbered(12, 8, 4)
    epoch = list[float]()
    for first in range(0, 24, 4):
        whole = batches(dataset, real=real).micro("fake", first, 0)
        layout = [(micro, rank) for micro in range(2) for rank in range(2)]
        parts = [batches(dataset, rank, 2, 2, real).micro("fake", first, micro) for micro, rank in layout]
        assert torch.equal(torch.cat([part.noise for part in parts]), whole.noise)
        assert torch.equal(torch.cat([part.random.keys for part in parts]), whole.random.keys)
        if real:
            assert whole.real is not None and whole.real.shape == whole.noise.shape
            assert torch.equal(torch.cat([part.real for part in parts if part.real is not None]), whole.real)
            epoch += whole.real[:, 0, 0, 0].tolist()
    assert not real or sorted(epoch) == list(range(24))  # six batches of four are one epoch of every bucket


def test_workers_read_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_DECODED_BYTES", 0)
    write_set()
    dataset = load(prompt_column=None, label_column=None)
    assert dataset.on_demand
    here, ahead = batches(dataset), batches(dataset)
    requests = [Request("fake", 4 * number, 0) for number in range(10)]
    ahead.workers, ahead.upcoming = 2, lambda: iter(requests)
    try:
        for request in requests:
            one, other = here.micro(*request).real, ahead.micro(*request).real
            assert one is not None and other is not None and torch.equal(one, other)
    finally:
        ahead.close()


def test_a_resume_notices_other_buckets() -> None:
    write_set()
    assert load().digest["buckets"] == [[3, 3, 8, 8], [5, 3, 4, 8], [2, 3, 8, 4]]
    assert load(buckets=(TALL, WIDE)).digest != load().digest
    assert load().pixels_hash() == load().pixels_hash() != load(buckets=(WIDE,)).pixels_hash()


def test_what_is_refused() -> None:
    write_set()
    cases: list[tuple[Any, str]] = [
        (lambda: images(buckets=((4, 0),)), "buckets: must be positive, got [[4, 0]]"),
        (lambda: images(buckets=(WIDE, WIDE)), "buckets: [4, 8] is there twice, among buckets and resolution"),
        (lambda: images(buckets=((8, 8),)), "buckets: [8, 8] is there twice, among buckets and resolution"),
        (
            lambda: Mixture(images(), images(buckets=())).load(),
            "data: a part of a mixture has samples of one size; leave its buckets out",
        ),
        (
            lambda: load().images(torch.arange(4)),
            "data: set is in buckets, and this needs samples of one size; leave data.buckets out",
        ),
    ]
    for call, line in cases:
        with pytest.raises(UserError) as caught:
            call()
        assert str(caught.value) == line
