"""The data sources that a recipe can name."""

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
from trainers.data.prompts import Prompts, check_column, open_rows, text_column
from trainers.data.source import Data

# The most bytes of decoded images that a process keeps in memory. CIFAR-10 has 0.15 GiB, and 87,381 images of 64x64 RGB
# pixels have 1 GiB.
MAX_DECODED_BYTES = 2**30


@dataclass(frozen=True)
class Digits(Data):
    """The handwritten digits of scikit-learn: 1797 images of 8x8 pixels, 17 grey levels, 10 classes. No download."""

    def load(self) -> Dataset:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(digits.images.astype(np.float32))[:, None] / 8 - 1
        labels = torch.from_numpy(digits.target.astype(np.int64))
        return Dataset("digits", len(images), (1, 8, 8), labels, lambda positions: images[positions])


@dataclass(frozen=True)
class Images(Data):
    """Any image data set that datasets.load_dataset reads: a hub id, a local image folder, or parquet files.

    Images are centre-cropped to the aspect of `resolution` and resized to it (Lanczos). A data set of at most 1 GiB at
    this resolution is decoded once and kept in memory. A larger one is decoded on demand.

    Attributes:
        path: An id on the hub, a folder of images (one subfolder for each class), or a glob of parquet files.
        resolution: Pixels to a side of a square, or (height, width).
        mode: RGB or L (grey).
        split: The split of the data set.
        config: The configuration of a data set on the hub.
        image_column: The column of the images.
        label_column: The column of the labels. None for no labels.
        prompt_column: The column of the prompts, which replace the labels. None for no prompts.
    """

    path: str
    resolution: int | tuple[int, int] = 32
    mode: Literal["RGB", "L"] = "RGB"
    split: str = "train"
    config: str | None = None
    image_column: str = "image"
    label_column: str | None = "label"
    prompt_column: str | None = None

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
        check_column(rows, self.image_column, self.path, "data.image_column")
        if not isinstance(rows.features[self.image_column], Image):
            raise UserError(f"data.image_column: {self.image_column!r} in {self.path} holds no images")
        prompts, labels = None, None
        if self.prompt_column is not None:
            prompts = text_column(rows, self.prompt_column, self.path, "data.prompt_column")
        elif self.label_column is not None:
            labels = self._labels(rows, self.label_column)
        pictures = rows.select_columns([self.image_column])

        def decode(positions: Tensor) -> Tensor:
            return torch.stack([self._pixels(picture) for picture in pictures[positions.tolist()][self.image_column]])

        shape = (1 if self.mode == "L" else 3, *self.size)
        read = _decode_once(decode, len(rows), shape) if len(rows) * math.prod(shape) <= MAX_DECODED_BYTES else decode
        name, content = Path(self.path).name, partial(self._content, pictures)
        return Dataset(
            name, len(rows), shape, labels, lambda at: read(at).float() / 127.5 - 1, prompts, content=content
        )

    def _content(self, pictures: Any) -> str:
        """Return a hash of the files, and of the settings by which they become pixels."""
        from datasets import Image

        digest = hashlib.sha256(f"square, lanczos, {self.resolution}, {self.mode}".encode())
        for picture in pictures.cast_column(self.image_column, Image(decode=False)):
            file = picture[self.image_column]
            digest.update(hashlib.sha256(file["bytes"] or Path(file["path"]).read_bytes()).digest())
        return digest.hexdigest()

    def _labels(self, rows: Any, column: str) -> Tensor:
        """Return the labels in a column, int64 [N]."""
        check_column(rows, column, self.path, "data.label_column", " (null trains without labels)")
        values = rows[column][:]
        if not all(isinstance(value, int) and value >= 0 for value in values):
            raise UserError(
                f"data.label_column: {column!r} in {self.path} must hold an integer of at least 0 for every image"
            )
        return torch.tensor(values, dtype=torch.int64)

    def _pixels(self, picture: Any) -> Tensor:
        """Return an image, cropped and resized, as uint8 [C, H, W]."""
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


def _decode_once(decode: Callable[[Tensor], Tensor], count: int, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """Return a function like `decode` that decodes each image once and keeps it in memory.

    Args:
        decode: (positions [B]) -> images, uint8 [B, C, H, W].
        count: The number of images.
        shape: (C, H, W).
    """
    pixels, known = torch.empty(count, *shape, dtype=torch.uint8), torch.zeros(count, dtype=torch.bool)

    def read(positions: Tensor) -> Tensor:
        new = positions[~known[positions]].unique()
        if len(new):
            pixels[new], known[new] = decode(new), True
        return pixels[positions]

    return read


@dataclass(frozen=True)
class DataFree(Data):
    """No images. Labels are drawn uniformly.

    Attributes:
        shape: (C, *spatial) of the teacher's samples.
        classes: The number of the teacher's classes. 0 for no labels.
    """

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
    """A data set that the caller gave as a Python object, which a recipe cannot hold.

    Attributes:
        title: The name of the data set.
    """

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
