"""The data sources: what they give, and what they refuse in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from distill.errors import UserError
from tests.tiny import experiment, teacher_recipe
from trainers.data import Data, DataFree, Dataset, Digits, Images, sources


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written outside of tmp_path, nothing is asked of the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def refusal(data: Data) -> str:
    with pytest.raises(UserError) as caught:
        data.load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def every(dataset: Dataset) -> Tensor:
    return dataset.images(torch.arange(dataset.count))


def test_digits() -> None:
    dataset = Digits().load()
    images = every(dataset)
    assert (dataset.name, dataset.count, dataset.shape, dataset.classes) == ("digits", 1797, (1, 8, 8), 10)
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.float32
    assert images.unique().tolist() == [level / 8 - 1 for level in range(17)]
    assert dataset.labels is not None and dataset.labels.dtype == torch.int64
    assert dataset.labels[:10].tolist() == list(range(10)) and dataset.labels.bincount().min() == 174
    assert images[0, 0, 0].tolist() == [v / 8 - 1 for v in (0, 0, 5, 13, 9, 1, 0, 0)]  # the first row of the first zero


def test_labels_alone() -> None:
    dataset = DataFree((4, 8, 8), 7).load()
    assert (dataset.shape, dataset.classes, dataset.read) == ((4, 8, 8), 7, None)
    assert dataset.labels is not None and dataset.labels.bincount().tolist() == [1] * 7
    assert DataFree((1, 2, 2)).load().labels is None and DataFree((1, 2, 2)).load().classes == 0
    with pytest.raises(UserError, match=r"^data: data_free has no images; name a data set of real ones"):
        every(dataset)


def solid(colour: Any, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("L" if isinstance(colour, int) else "RGB", size, colour)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """Four solid pictures with labels 2, 0, 1, 0, and a column of words."""
    columns = {
        "picture": [solid(0), solid(255), solid(51), solid(102)],
        "digit": [2, 0, 1, 0],
        "word": ["two", "zero", "one", "zero"],
        "gap": [1, None, 0, 1],
    }
    features = datasets.Features(
        picture=datasets.Image(),
        digit=datasets.Value("int64"),
        word=datasets.Value("string"),
        gap=datasets.Value("int64"),
    )
    file = tmp_path / "pictures" / "some.parquet"
    file.parent.mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(file))
    return file


def parquet_data(file: Path, **changes: Any) -> Images:
    settings = {"path": str(file), "resolution": 8, "mode": "L", "image_column": "picture", "label_column": "digit"}
    return Images(**(settings | changes))


def test_a_parquet_file(parquet: Path) -> None:
    dataset = parquet_data(parquet).load()
    assert (dataset.count, dataset.shape, dataset.classes) == (4, (1, 8, 8), 3)
    assert dataset.labels is not None and dataset.labels.tolist() == [2, 0, 1, 0]
    images = every(dataset)
    assert images.shape == (4, 1, 8, 8) and images.dtype == torch.float32
    assert images.mean((1, 2, 3)).tolist() == pytest.approx([-1, 1, 51 / 127.5 - 1, 102 / 127.5 - 1])
    assert torch.equal(dataset.images(torch.tensor([3, 1])), images[[3, 1]])


@pytest.mark.parametrize("path", ["*.parquet", ""])
def test_a_glob_and_a_folder_of_parquet_files(path: str, parquet: Path) -> None:
    place = f"{parquet.parent}/{path}" if path else parquet.parent
    dataset = parquet_data(place, label_column=None, mode="RGB").load()  # type: ignore[arg-type]
    assert (dataset.count, dataset.shape, dataset.labels, dataset.classes) == (4, (3, 8, 8), None, 0)
    assert every(dataset).mean((1, 2, 3)).tolist() == pytest.approx([-1, 1, -0.6, -0.2])


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    """One subfolder a class, in the order of their names; colours keep their channels."""
    for name, colour in (("cat", (255, 0, 0)), ("ape", (0, 255, 51)), ("bee", (0, 0, 255))):
        (tmp_path / "zoo" / name).mkdir(parents=True)
        solid(colour).save(tmp_path / "zoo" / name / "one.png")
    dataset = Images(str(tmp_path / "zoo"), resolution=8).load()
    assert (dataset.name, dataset.count, dataset.shape, dataset.classes) == ("zoo", 3, (3, 8, 8), 3)
    assert dataset.labels is not None
    colours = {0: [-1, 1, -0.6], 1: [-1, -1, 1], 2: [1, -1, -1]}
    for label, image in zip(dataset.labels.tolist(), every(dataset), strict=True):
        assert image.mean((1, 2)).tolist() == pytest.approx(colours[label])
    grey = every(Images(str(tmp_path / "zoo"), resolution=8, mode="L").load())
    assert sorted(grey.mean((1, 2, 3)).tolist()) == pytest.approx([29 / 127.5 - 1, 76 / 127.5 - 1, 156 / 127.5 - 1])


def test_the_square_in_the_middle_is_resized(tmp_path: Path) -> None:
    """12x8: the 2 columns on either side go; then halves of 0 and 255 meet in the middle at every resolution."""
    pixels = np.full((8, 12), 77, dtype=np.uint8)
    pixels[:, 2:6], pixels[:, 6:10] = 0, 255
    (tmp_path / "wide").mkdir()
    Image.fromarray(pixels).save(tmp_path / "wide" / "a.png")
    Image.fromarray(pixels.T.copy()).save(tmp_path / "wide" / "b.png")

    def rows(resolution: int) -> Tensor:
        images = every(Images(str(tmp_path / "wide"), resolution=resolution, mode="L", label_column=None).load())
        assert torch.equal(images[0], images[1].mT)
        return images[0, 0]

    assert rows(8).tolist() == [[-1.0] * 4 + [1.0] * 4] * 8
    assert rows(2).sign().tolist() == [[-1.0, 1.0]] * 2 and float(rows(2).sum()) == pytest.approx(0, abs=0.02)
    large = rows(32)
    assert large.shape == (32, 32) and float(large[:, :12].max()) < -0.8 and float(large[:, 20:].min()) > 0.8


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_what_is_kept_decoded_is_what_is_decoded_on_demand(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, in any order and number; a kept image is decoded once. 1 GiB is the most that is kept."""
    (tmp_path / "noise").mkdir()
    for index, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (5, 12, 12, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "noise" / f"{index}.png")
    data = Images(str(tmp_path / "noise"), resolution=8, mode=mode, label_column=None)  # type: ignore[arg-type]
    decoded: list[Any] = []
    pixels_of = Images._pixels
    monkeypatch.setattr(Images, "_pixels", lambda *given: (decoded.append(1), pixels_of(*given))[1])
    size = 5 * 8 * 8 * (1 if mode == "L" else 3)
    draws = [torch.tensor(at) for at in ([3, 1], [1, 1, 4, 3], [0, 1, 2, 3, 4])]
    assert sources.MAX_DECODED_BYTES == 2**30
    results = {}
    for kept, times in ((size, 5), (size - 1, 11)):
        decoded.clear()
        monkeypatch.setattr(sources, "MAX_DECODED_BYTES", kept)
        dataset = data.load()
        results[kept] = torch.cat([dataset.images(at) for at in draws])
        assert len(decoded) == times
    assert torch.equal(results[size], results[size - 1])
    assert results[size].unique().numel() > 100 and results[size].dtype == torch.float32


def test_mistakes_are_one_line(parquet: Path, tmp_path: Path) -> None:
    columns = "picture, digit, word, gap"
    for column, key, hint in (
        ("image", "image_column", ""),
        ("label", "label_column", " (null trains without labels)"),
    ):
        message = f"data.{key}: no column {column!r} in {parquet}; it has {columns}{hint}"
        assert refusal(parquet_data(parquet, **{key: column})) == message
    missing = tmp_path / "nothing"
    assert refusal(Images(str(missing))).startswith(f"data: cannot load '{missing}': ")
    assert refusal(Images(f"{missing}/*.parquet")).startswith(f"data: cannot load '{missing}/*.parquet': ")
    (tmp_path / "empty").mkdir()
    assert refusal(Images(str(tmp_path / "empty"))).startswith(f"data: cannot load '{tmp_path}/empty': ")


def test_columns_of_the_wrong_kind_are_refused(parquet: Path) -> None:
    assert refusal(parquet_data(parquet, image_column="digit")) == (
        f"data.image_column: 'digit' in {parquet} holds no images"
    )
    assert refusal(parquet_data(parquet, label_column="gap")) == (
        f"data.label_column: 'gap' in {parquet} must hold an integer of at least 0 and below 100,000 for every"
        " image, or a word for every image; row 1 holds None"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "rgb"}, "key 'data.mode' must be one of 'RGB', 'L', got 'rgb' (did you mean 'RGB'?)"),
        ({"resolution": 0}, "key 'data': resolution: must be positive, got 0"),
        ({"name": "data_free", "shape": [1, 0, 8]}, "key 'data': shape must be positive and classes at least 0, got"),
        ({"name": "data_free", "shape": [1, 8, 8], "classes": -1}, "key 'data': shape must be positive and classes at"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    settings = {"name": "images", "path": "x"} | settings
    if settings["name"] == "data_free":
        del settings["path"]
    with pytest.raises(UserError) as caught:
        experiment(teacher_recipe(data=settings))
    assert str(caught.value).startswith(f"test: {message}")
