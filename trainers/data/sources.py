"""The data sources a recipe can name."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from distill.errors import UserError
from trainers.data.dataset import Dataset
from trainers.data.prompts import Prompts, open_rows, strings
from trainers.data.source import Data

KEPT = 2**30  # bytes of a decoded data set that a process keeps in memory: CIFAR-10 is 0.15 GiB, 64x64 RGB up to 87,381


@dataclass(frozen=True)
class Digits(Data):
    """scikit-learn's embedded handwritten digits: 1797 images, 1x8x8, 17 grey levels, 10 classes. No download."""

    def load(self) -> Dataset:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(digits.images.astype(np.float32))[:, None] / 8 - 1
        labels = torch.from_numpy(digits.target.astype(np.int64))
        return Dataset("digits", len(images), (1, 8, 8), labels, lambda positions: images[positions])


@dataclass(frozen=True)
class Images(Data):
    """Any image data set that datasets.load_dataset reads: a hub id, a local image folder, or parquet files.

    Images are centre-cropped to the aspect of `resolution` and resized (Lanczos) to it, in `mode` RGB or L. Each is
    decoded once and kept as bytes when the whole set at this resolution is at most 1 GiB. A larger set is decoded on
    demand.
    """

    path: str  # hub id, folder of images (one subfolder a class) or glob of parquet files
    resolution: int | tuple[int, int] = 32  # pixels to a side, or [height, width]
    mode: Literal["RGB", "L"] = "RGB"
    split: str = "train"
    config: str | None = None
    image_column: str = "image"
    label_column: str | None = "label"  # null: unconditional
    prompt_column: str | None = None  # prompts instead of labels

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise UserError(f"resolution: must be positive, got {self.resolution}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image."""
        return (self.resolution, self.resolution) if isinstance(self.resolution, int) else self.resolution

    def load(self) -> Dataset:
        from datasets import Image

        rows = open_rows(self.path, self.split, self.config, folder="imagefolder")
        if self.image_column not in rows.column_names:
            raise UserError(
                f"data.image_column: no column {self.image_column!r} in {self.path}; it has {rows.column_names}"
            )
        if not isinstance(rows.features[self.image_column], Image):
            raise UserError(f"data.image_column: {self.image_column!r} in {self.path} holds no images")
        prompts, labels = None, None
        if self.prompt_column is not None:
            prompts = strings(rows, self.prompt_column, self.path, "data.prompt_column")
        elif self.label_column is not None:
            labels = self._labels(rows, self.label_column)
        pictures = rows.select_columns([self.image_column])

        def decode(positions: Tensor) -> Tensor:
            batch = pictures[positions.tolist()][self.image_column]
            return torch.stack([self._pixels(picture) for picture in batch])

        shape = (1 if self.mode == "L" else 3, *self.size)
        read = _kept(decode, len(rows), shape) if len(rows) * math.prod(shape) <= KEPT else decode
        name, content = Path(self.path).name, partial(self._content, pictures)
        return Dataset(
            name, len(rows), shape, labels, lambda at: read(at).float() / 127.5 - 1, prompts, content=content
        )

    def _content(self, pictures: Any) -> str:
        """A hash of the files and of how they become pixels."""
        from datasets import Image

        digest = hashlib.sha256(f"square, lanczos, {self.resolution}, {self.mode}".encode())
        for picture in pictures.cast_column(self.image_column, Image(decode=False)):
            file = picture[self.image_column]
            digest.update(hashlib.sha256(file["bytes"] or Path(file["path"]).read_bytes()).digest())
        return digest.hexdigest()

    def _labels(self, rows: Any, column: str) -> Tensor:
        if column not in rows.column_names:
            raise UserError(
                f"data.label_column: no column {column!r} in {self.path}; it has {rows.column_names}"
                " (null trains without labels)"
            )
        values = rows[column][:]
        if not all(isinstance(value, int) and value >= 0 for value in values):
            raise UserError(
                f"data.label_column: {column!r} in {self.path} must hold an integer of at least 0 for every image"
            )
        return torch.tensor(values, dtype=torch.int64)

    def _pixels(self, picture: Any) -> Tensor:
        """Uint8 [C, H, W]."""
        from PIL import Image

        height, width = self.size
        scale = min(picture.width / width, picture.height / height)
        crop = round(width * scale), round(height * scale)
        left, top = (picture.width - crop[0]) // 2, (picture.height - crop[1]) // 2
        middle = picture.convert(self.mode).crop((left, top, left + crop[0], top + crop[1]))
        if crop != (width, height):
            middle = middle.resize((width, height), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(middle))
        return pixels[None] if self.mode == "L" else pixels.permute(2, 0, 1)


def _kept(decode: Callable[[Tensor], Tensor], count: int, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """`decode`, which maps positions [B] to uint8 [B, C, H, W], called once an image: what it returned is kept."""
    pixels, known = torch.empty(count, *shape, dtype=torch.uint8), torch.zeros(count, dtype=torch.bool)

    def read(positions: Tensor) -> Tensor:
        new = positions[~known[positions]].unique()
        if len(new):
            pixels[new], known[new] = decode(new), True
        return pixels[positions]

    return read


@dataclass(frozen=True)
class DataFree(Data):
    """No images: the teacher's `shape` (C, *spatial) and its `classes`, drawn uniformly (0: unconditional)."""

    shape: tuple[int, ...]
    classes: int = 0

    def __post_init__(self) -> None:
        if len(self.shape) < 2 or min(self.shape) < 1 or self.classes < 0:
            raise UserError(f"shape must be positive and classes at least 0, got {self.shape} and {self.classes}")

    def load(self) -> Dataset:
        labels = torch.arange(self.classes) if self.classes else None
        return Dataset("data_free", max(self.classes, 1), self.shape, labels, None)


@dataclass(frozen=True)
class GivenData(Data):
    """A data set that the caller gave as a Python object; a recipe cannot hold it."""

    title: str = "object"

    def load(self) -> Dataset:
        raise UserError(f"data: '{self.title}' was given as a Python object; give it again, as data=...")


DATA: dict[str, type[Data]] = {
    "digits": Digits,
    "images": Images,
    "prompts": Prompts,
    "data_free": DataFree,
    "object": GivenData,
}
