"""The data sources a recipe can name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.errors import UserError
from trainers.data.dataset import Dataset


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

    Images are centre-cropped to a square and resized (Lanczos) to `resolution`, in `mode` RGB or L.
    """

    path: str  # hub id, folder of images (one subfolder a class) or glob of parquet files
    resolution: int = 32
    mode: str = "RGB"
    split: str = "train"
    config: str | None = None
    image_column: str = "image"
    label_column: str | None = "label"  # null: unconditional

    def load(self) -> Dataset:
        rows = self._open()
        if self.image_column not in rows.column_names:
            raise UserError(
                f"data.image_column: no column {self.image_column!r} in {self.path}; it has {rows.column_names}"
            )
        labels = None
        if self.label_column is not None:
            if self.label_column not in rows.column_names:
                raise UserError(
                    f"data.label_column: no column {self.label_column!r} in {self.path}; it has {rows.column_names}"
                    " (null trains without labels)"
                )
            labels = torch.tensor(rows[self.label_column][:], dtype=torch.int64)
        pictures = rows.select_columns([self.image_column])

        def read(positions: Tensor) -> Tensor:
            batch = pictures[positions.tolist()][self.image_column]
            return torch.stack([self._tensor(picture) for picture in batch])

        channels = 1 if self.mode == "L" else 3
        return Dataset(Path(self.path).name, len(rows), (channels, self.resolution, self.resolution), labels, read)

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

    def _tensor(self, picture: Any) -> Tensor:
        from PIL import Image

        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.convert(self.mode).crop((left, top, left + side, top + side))
        if side != self.resolution:
            square = square.resize((self.resolution, self.resolution), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(square, dtype=np.float32)) / 127.5 - 1
        return pixels[None] if self.mode == "L" else pixels.permute(2, 0, 1)


@dataclass(frozen=True)
class DataFree(Data):
    """No images: the teacher's `shape` (C, H, W) and its `classes`, drawn uniformly (0: unconditional)."""

    shape: tuple[int, int, int]
    classes: int = 0

    def load(self) -> Dataset:
        labels = torch.arange(self.classes) if self.classes else None
        return Dataset("data_free", max(self.classes, 1), self.shape, labels, None)


DATA: dict[str, type[Data]] = {"digits": Digits, "images": Images, "data_free": DataFree}
