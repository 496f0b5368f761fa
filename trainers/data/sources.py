"""The data sources that a recipe can name."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from mmap import mmap
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.distributed import get_rank, is_initialized

from distill.annotations import LocalPath
from distill.errors import UserError
from trainers.data.buckets import Buckets, nearest_aspects
from trainers.data.dataset import Dataset, values_hash
from trainers.data.labels import classes_in_words, to_labels
from trainers.data.mixture import Mixture
from trainers.data.picture_rows import open_pictures
from trainers.data.pictures import Pictures
from trainers.data.pixels import BACKGROUND, Damaged, decode_picture, open_picture, quiet_pillow, to_pixels
from trainers.data.prompts import Prompts
from trainers.data.scan import hash_pictures, picture_sizes, scan_pictures
from trainers.data.source import Data
from trainers.data.tables import check_column, text_column
from trainers.io.console import plain

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


class _Rows(NamedTuple):
    """Pictures with their conditions.

    Attributes:
        pictures: The pictures.
        labels: The label of each. None without labels.
        prompts: The prompt of each. None without prompts.
        class_names: The names of the classes. None where they have none.
    """

    pictures: Pictures
    labels: Tensor | None
    prompts: Sequence[str] | None
    class_names: tuple[str, ...] | None

    def select(self, numbers: Sequence[int]) -> Self:
        """Return the rows of some numbers, in their order."""
        prompts = None if self.prompts is None else [self.prompts[number] for number in numbers]
        labels = None if self.labels is None else self.labels[list(numbers)]
        return self._replace(pictures=self.pictures.select(numbers), labels=labels, prompts=prompts)


@dataclass(frozen=True)
class Images(Data):
    """Any image data set: a hub id, a local folder or archive of pictures, or a table such as parquet files.

    Images are centre-cropped to the aspect of `resolution` and resized to it. A data set of at most 1 GiB at
    this resolution is decoded once and kept in memory. A larger one is decoded on demand. Pictures of 16 bits are
    scaled by 65,535 and floats by 1, and transparent parts are white.

    Attributes:
        path: An id on the hub, a folder or a zip archive of pictures (one subfolder for each class, or EDM's
            dataset.json, or metadata.jsonl), tar archives such as WebDataset's shards, or a file, a folder or a glob of
            tables.
        resolution: Pixels to a side of a square, or (height, width).
        mode: RGB or L (grey).
        resize: How pictures are resized: with Lanczos' filter, or as ADM does, and EDM2 at 512 pixels.
        split: The split of the data set.
        config: The configuration of a data set on the hub.
        image_column: The column of the images.
        label_column: The column of the labels, which are numbers or words. None for no labels.
        prompt_column: The column of the prompts, which replace the labels. None for no prompts.
        damaged: Whether pictures that cannot be read are refused, or skipped and counted.
        verify: Whether each start reads all pictures to know that they are those of the cache. Without it, names, sizes
            and times of the files tell.
        flip: Whether each picture is there twice: as it is, and mirrored left to right.
        buckets: Further sizes, (height, width). Each picture has the size whose aspect is nearest to its own, among
            these and `resolution`. For networks that take samples of several sizes, as those of prompts do.
    """

    path: LocalPath
    resolution: int | tuple[int, int] = 32
    mode: Literal["RGB", "L"] = "RGB"
    resize: Literal["lanczos", "adm"] = "lanczos"
    split: str = "train"
    config: str | None = None
    image_column: str = "image"
    label_column: str | None = "label"
    prompt_column: str | None = None
    damaged: Literal["refuse", "skip"] = "refuse"
    verify: bool = False
    flip: bool = False
    buckets: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise UserError(f"resolution: must be positive, got {self.resolution}")
        if any(min(size) < 1 for size in self.buckets):
            raise UserError(f"buckets: must be positive, got {list(map(list, self.buckets))}")
        if twice := [size for size in self.buckets if (self.size, *self.buckets).count(size) > 1]:
            raise UserError(f"buckets: {list(twice[0])} is there twice, among buckets and resolution")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image."""
        return _sides(self.resolution)

    def load(self) -> Dataset:
        console = plain(stderr=True, quiet=is_initialized() and get_rank() > 0)
        found = open_pictures(self.path, self.split, self.config, self.image_column)
        if not found.count:
            raise UserError(f"data: '{self.path}' holds no pictures")
        rows = _Rows(found, *self._conditions(found))
        scan = scan_pictures(found, Path(self.path).name, console)
        if scan.damaged:
            console.print(self._refuse_or_skip(found, scan.damaged), style="yellow")
            rows = rows.select([number for number in range(found.count) if number not in scan.damaged])
        kinds = "" if rows.labels is None else f" in {classes_in_words(rows.labels, rows.class_names)}"
        console.print(f"data: '{Path(self.path).name}': {rows.pictures.count:,} pictures{kinds}")
        if found.left_out:
            console.print(f"data: left out of '{Path(self.path).name}': {'; '.join(found.left_out)}", style="yellow")
        if self.buckets:
            return self._in_buckets(rows, scan.converted, console)
        on_demand = rows.pictures.count * math.prod(self._shape(self.size)) > MAX_DECODED_BYTES
        return self._opened(rows, self.resolution, scan.converted, on_demand)

    def _in_buckets(self, rows: _Rows, converted: bool, console: Console) -> Buckets:
        """Return pictures in buckets, each in that of the nearest aspect. Buckets without pictures are left out."""
        sizes = (self.size, *self.buckets)
        chosen = nearest_aspects(picture_sizes(rows.pictures, Path(self.path).name, console), sizes)
        groups = [rows.select((chosen == number).nonzero().flatten().tolist()) for number in range(len(sizes))]
        counts = [group.pictures.count for group in groups]
        shares = ", ".join(f"{n:,} of {height}x{width}" for n, (height, width) in zip(counts, sizes, strict=True))
        console.print(f"data: '{Path(self.path).name}' in buckets, height x width: {shares}")
        elements = sum(n * math.prod(self._shape(size)) for n, size in zip(counts, sizes, strict=True))
        filled = [(group, size) for group, size, n in zip(groups, sizes, counts, strict=True) if n]
        parts = [self._opened(group, size, converted, elements > MAX_DECODED_BYTES) for group, size in filled]
        return Buckets.of(parts, self._shape(self.size))

    def _shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Return (C, H, W) of an image of this height and width."""
        return (1 if self.mode == "L" else 3, *size)

    def _opened(self, rows: _Rows, resolution: int | tuple[int, int], converted: bool, on_demand: bool) -> Dataset:
        """Return pictures as a data set of one size.

        Args:
            rows: The pictures.
            resolution: Their size, as the recipe has it.
            converted: Whether a picture changes in its conversion to 8 bits.
            on_demand: Whether they are decoded at each call, and not kept in memory.
        """
        found, size = rows.pictures, _sides(resolution)

        def decode(positions: Tensor) -> Tensor:
            with quiet_pillow():
                return torch.stack([self._pixels(found, number, size) for number in positions.tolist()])

        dataset = Dataset(
            Path(self.path).name,
            found.count,
            self._shape(size),
            rows.labels,
            decode if on_demand else _decode_once(decode, found.count, self._shape(size)),
            rows.prompts,
            content=partial(self._content, found, converted, resolution),
            class_names=rows.class_names,
            on_demand=on_demand,
        )
        return with_mirrored(dataset) if self.flip else dataset

    def _conditions(self, found: Pictures) -> tuple[Tensor | None, Sequence[str] | None, tuple[str, ...] | None]:
        """Return the labels, the prompts and the names of the classes."""
        if self.prompt_column is not None:
            return None, text_column(found, self.prompt_column, self.path, "data.prompt_column"), None
        if (column := self.label_column) is None:
            return None, None, None
        check_column(found, column, self.path, "data.label_column", " (null trains without labels)")
        labels, names = to_labels(found[column][:], found.class_names.get(column), self.path, column)
        return labels, None, names

    def _refuse_or_skip(self, found: Pictures, damaged: Mapping[int, str]) -> str:
        """Return a line about the damaged pictures that are skipped. Raise UserError if they are refused."""
        some = "; ".join(f"{found.name(number)} {why}" for number, why in sorted(damaged.items())[:3])
        more = f"; and {len(damaged) - 3:,} more" if len(damaged) > 3 else ""
        counted = f"{len(damaged):,} of {found.count:,} pictures"
        if self.damaged == "refuse" or len(damaged) == found.count:
            hint = " (data.damaged: skip leaves them out)" if len(damaged) < found.count else ""
            raise UserError(f"data: {counted} in '{self.path}' cannot be read: {some}{more}{hint}")
        return f"data: skipped {counted} in '{Path(self.path).name}': {some}{more}"

    def _content(self, found: Pictures, converted: bool, resolution: int | tuple[int, int]) -> str:
        """Return a hash of the files, and of the settings by which they become pixels."""
        settings = f"square, {self.resize}, {resolution}, {self.mode}"
        if converted:  # such pictures had other pixels before this was stated
            settings += f"16 bits scaled, transparent parts {BACKGROUND}"
        return hash_pictures(found, settings, self.verify)

    def _pixels(self, found: Pictures, number: int, size: tuple[int, int]) -> Tensor:
        """Return a picture, cropped and resized, as uint8 [C, H, W].

        Raises:
            UserError: It was damaged since the scan.
        """
        try:
            picture = decode_picture(open_picture(found.read(number)))
        except Damaged as why:
            raise UserError(f"data: {found.name(number)} {why}") from why
        return to_pixels(picture, self.mode, size, self.resize)


def _sides(resolution: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width of a resolution."""
    return (resolution, resolution) if isinstance(resolution, int) else resolution


def _decode_once(decode: Callable[[Tensor], Tensor], count: int, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """Return a function like `decode` that decodes each image once and keeps it in memory.

    Args:
        decode: (positions [B]) -> images, uint8 [B, C, H, W].
        count: The number of images.
        shape: (C, H, W).
    """
    # Anonymous memory, which workers share: a mixture reads in workers what is kept beside what is decoded on demand.
    pixels = torch.frombuffer(mmap(-1, count * math.prod(shape)), dtype=torch.uint8).view(count, *shape)
    known = torch.frombuffer(mmap(-1, count), dtype=torch.bool)

    def read(positions: Tensor) -> Tensor:
        new = positions[~known[positions]].unique()
        if len(new):
            pixels[new], known[new] = decode(new), True
        return pixels[positions]

    return read


def with_mirrored(dataset: Dataset) -> Dataset:
    """Return the images of a data set, and behind them the same mirrored left to right: twice as many.

    An epoch has both of each image, as in EDM (xflip).
    """
    count, images, content = dataset.count, dataset.read, dataset.content
    assert images is not None and content is not None, "pictures can be read"

    def read(positions: Tensor) -> Tensor:
        found = images(positions % count)
        return torch.where((positions >= count)[:, None, None, None], found.flip(-1), found)

    return replace(
        dataset,
        count=2 * count,
        labels=None if dataset.labels is None else dataset.labels.repeat(2),
        prompts=None if dataset.prompts is None else [*dataset.prompts, *dataset.prompts],
        read=read,
        content=lambda: values_hash(["mirrored", content()]),
    )


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
    "mixture": Mixture,
    "data_free": DataFree,
    "object": GivenData,
}
