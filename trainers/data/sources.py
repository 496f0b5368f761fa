"""The data sources a recipe can name."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from distill.errors import UserError
from trainers.data.dataset import Dataset

KEPT = 2**30  # bytes of a decoded data set that a process keeps in memory: CIFAR-10 is 0.15 GiB, 64x64 RGB up to 87,381


@dataclass(frozen=True)
class Data:
    """A source of images in [-1, 1] and labels."""

    def load(self) -> Dataset:
        """Open the data set; raises UserError when it cannot be had."""
        raise NotImplementedError


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

    Images are centre-cropped to a square and resized (Lanczos) to `resolution`, in `mode` RGB or L. Each is decoded
    once and kept as bytes when the whole set at this resolution is at most 1 GiB; a larger set is decoded on demand.
    """

    path: str  # hub id, folder of images (one subfolder a class) or glob of parquet files
    resolution: int = 32
    mode: Literal["RGB", "L"] = "RGB"
    split: str = "train"
    config: str | None = None
    image_column: str = "image"
    label_column: str | None = "label"  # null: unconditional

    def __post_init__(self) -> None:
        if self.resolution < 1:
            raise UserError(f"resolution: must be positive, got {self.resolution}")

    def load(self) -> Dataset:
        from datasets import Image

        rows = self._open()
        if self.image_column not in rows.column_names:
            raise UserError(
                f"data.image_column: no column {self.image_column!r} in {self.path}; it has {rows.column_names}"
            )
        if not isinstance(rows.features[self.image_column], Image):
            raise UserError(f"data.image_column: {self.image_column!r} in {self.path} holds no images")
        labels = None if self.label_column is None else self._labels(rows, self.label_column)
        pictures = rows.select_columns([self.image_column])

        def decode(positions: Tensor) -> Tensor:
            batch = pictures[positions.tolist()][self.image_column]
            return torch.stack([self._pixels(picture) for picture in batch])

        shape = (1 if self.mode == "L" else 3, self.resolution, self.resolution)
        read = _kept(decode, len(rows), shape) if len(rows) * math.prod(shape) <= KEPT else decode
        return Dataset(Path(self.path).name, len(rows), shape, labels, lambda at: read(at).float() / 127.5 - 1)

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

    def _open(self) -> Any:
        from datasets import load_dataset

        try:
            if self.path.endswith(".parquet"):
                return load_dataset("parquet", data_files={self.split: self.path}, split=self.split)
            if os.path.isdir(self.path) and not any(Path(self.path).glob("*.parquet")):
                return load_dataset("imagefolder", data_dir=self.path, split=self.split)
            return load_dataset(self.path, self.config, split=self.split)
        except Exception as error:  # datasets raises a dozen kinds; the user needs the line, not the kind
            raise UserError(f"data: cannot load '{self.path}': {' '.join(str(error).split())[:300]}") from error

    def _pixels(self, picture: Any) -> Tensor:
        """Uint8 [C, H, W]."""
        from PIL import Image

        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.convert(self.mode).crop((left, top, left + side, top + side))
        if side != self.resolution:
            square = square.resize((self.resolution, self.resolution), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(square))
        return pixels[None] if self.mode == "L" else pixels.permute(2, 0, 1)


def _kept(decode: Callable[[Tensor], Tensor], count: int, shape: tuple[int, int, int]) -> Callable[[Tensor], Tensor]:
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
    """No images: the teacher's `shape` (C, H, W) and its `classes`, drawn uniformly (0: unconditional)."""

    shape: tuple[int, int, int]
    classes: int = 0

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or self.classes < 0:
            raise UserError(f"shape must be positive and classes at least 0, got {self.shape} and {self.classes}")

    def load(self) -> Dataset:
        labels = torch.arange(self.classes) if self.classes else None
        return Dataset("data_free", max(self.classes, 1), self.shape, labels, None)


DATA: dict[str, type[Data]] = {"digits": Digits, "images": Images, "data_free": DataFree}
