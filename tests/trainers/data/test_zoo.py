"""A zoo: a picture of every kind, in every place where pictures may lie, has the same pixels, label and caption."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from trainers.data import Dataset, Images, sources
from trainers.data.batches import Batches, BatchSizes

LEFT, RIGHT = (255, 0, 51), (102, 204, 0)  # the colours of the two halves, which show where left is
GREYS = (51, 204)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


def halves(left: Any, right: Any, dtype: Any = np.uint8) -> Any:
    """Pixels [8, 8] or [8, 8, C]: two halves."""
    pixels = np.empty((8, 8, *np.shape(left)), dtype)
    pixels[:, :4], pixels[:, 4:] = left, right
    return pixels


def encoded(pixels: Any, kind: str, mode: str | None = None, **options: Any) -> bytes:
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels, mode)
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def turned() -> bytes:
    """The halves upside down, with a note in the EXIF data that says so."""
    exif = Image.Exif()
    exif[0x0112] = 3
    return encoded(halves(RIGHT, LEFT), "PNG", exif=exif)


def palette() -> bytes:
    picture = Image.fromarray(halves(1, 2), "P")
    picture.putpalette([0, 0, 0, *LEFT, *RIGHT])
    return encoded(picture, "PNG")


GREY_PAIR = tuple((grey,) * 3 for grey in GREYS)
ZOO: dict[str, tuple[bytes, Any, int]] = {  # name: (file, colours of the halves, the most that JPEG may differ)
    "cmyk.tif": (encoded(halves((0, 255, 204, 0), (153, 51, 255, 0)), "TIFF", "CMYK"), (LEFT, RIGHT), 0),
    "colour.png": (encoded(halves(LEFT, RIGHT), "PNG"), (LEFT, RIGHT), 0),
    "deep.png": (encoded(halves(*(257 * grey for grey in GREYS), np.uint16), "PNG"), GREY_PAIR, 0),
    "exif.png": (turned(), (LEFT, RIGHT), 0),
    "grey.png": (encoded(halves(*GREYS), "PNG"), GREY_PAIR, 0),
    "lossless.webp": (encoded(halves(LEFT, RIGHT), "WEBP", lossless=True), (LEFT, RIGHT), 0),
    "palette.png": (palette(), (LEFT, RIGHT), 0),
    "photo.jpg": (encoded(halves(LEFT, RIGHT), "JPEG", quality=100, subsampling=0), (LEFT, RIGHT), 3),
    "see-through.png": (encoded(halves((*LEFT, 255), (0, 0, 0, 0)), "PNG"), (LEFT, (255, 255, 255)), 0),
}
LABELS = [number % 3 for number in range(len(ZOO))]
CAPTIONS = [f"a picture of {name}" for name in ZOO]


def metadata() -> str:
    Path("set").mkdir()
    lines = []
    for (name, (content, *_)), label, text in zip(ZOO.items(), LABELS, CAPTIONS, strict=True):
        Path("set", name).write_bytes(content)
        lines.append(json.dumps({"file_name": name, "label": label, "text": text}))
    Path("set/metadata.jsonl").write_text("\n".join(lines))
    return "set"


def classes() -> str:
    for (name, (content, *_)), label, text in zip(ZOO.items(), LABELS, CAPTIONS, strict=True):
        folder = Path("set", str(label))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        (folder / name).with_suffix(".txt").write_text(text)
    return "set"


def zipped() -> str:
    place = Path(classes())
    with zipfile.ZipFile("set.zip", "w") as archive:
        for file in place.rglob("*.*"):
            archive.write(file, file.relative_to(place))
    return "set.zip"


def shards() -> str:
    Path("set").mkdir()
    members = list(zip(ZOO.items(), LABELS, CAPTIONS, strict=True))
    for number, part in enumerate((members[:4], members[4:])):
        with tarfile.open(f"set/{number}.tar", "w") as archive:
            for (name, (content, *_)), label, text in part:
                key = name.partition(".")[0]
                files = {name: content, f"{key}.cls": str(label).encode(), f"{key}.txt": text.encode()}
                for file, data in files.items():
                    entry = tarfile.TarInfo(file)
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))
    return "set/*.tar"


def table() -> str:
    rows = {"image": [content for content, *_ in ZOO.values()], "label": LABELS, "text": CAPTIONS}
    pq.write_table(pa.table(rows), "set.parquet")
    return "set.parquet"


@pytest.mark.parametrize("make", [metadata, classes, zipped, shards, table])
def test_every_kind_in_every_place(make: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_DECODED_BYTES", 0)
    path = make()
    data, captioned = Images(path, 8).load(), Images(path, 8, prompt_column="text").load()
    at = by_name(captioned)
    assert data.labels is not None and data.labels[at].tolist() == LABELS
    images = (data.images(at) + 1) * 127.5
    for image, (name, (_, colours, most)) in zip(images, ZOO.items(), strict=True):
        expected = torch.from_numpy(halves(*colours)).permute(2, 0, 1).float()
        assert float((image - expected).abs().max()) <= most + 0.01, name
    batches = Batches(data, BatchSizes(len(ZOO)), 0, torch.float32, True, 0, 1, torch.device("cpu"), workers=2)
    real = batches.micro("teacher", 0, 0).real
    batches.close()
    assert real is not None and torch.equal(real, data.images(data.order(0, torch.arange(len(ZOO)))))


def by_name(data: Dataset) -> torch.Tensor:
    """The positions of the pictures in the order of ZOO; folders of classes have another one."""
    assert data.prompts is not None and set(data.prompts) == set(CAPTIONS)
    return torch.tensor([list(data.prompts).index(text) for text in CAPTIONS])
