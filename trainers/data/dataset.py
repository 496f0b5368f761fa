"""A data set: samples in memory or decoded on demand, or conditions alone (labels, prompts)."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from distill.errors import UserError

SAMPLED = 16  # samples of a digest, at equal distances
HASHED_AT_ONCE = 32  # samples that are read at once for a hash of all
SAMPLE_PARTS = 8  # parts of a sample, whose means a digest holds
UNKNOWN: tuple[int, ...] = ()
"""The shape of a data set of prompts, until the teacher's is known."""


@dataclass(frozen=True)
class Dataset:
    """Samples with labels, with prompts or with neither, or conditions without samples.

    Attributes:
        name: The name in messages and in the names of protocols.
        count: The number of samples.
        shape: (C, *spatial) of a sample. Prompts without images have the shape UNKNOWN until the teacher is known.
        labels: The class of each sample, int64 [count]. None without labels.
        read: (int64 positions [B]) -> samples on the host, [B, C, *spatial]: float32, in [-1, 1] if they are images, or
            the uint8 levels of images. None if there are conditions alone, which are enough for a data-free objective.
            After encoding for a teacher of latents, it returns the means of latents.
        prompts: The prompt of each sample. None without prompts.
        embed: (positions [B]) -> the embeddings of the prompts, tensors [B, ...] by name. None before encoding.
        spread: (positions [B]) -> the standard deviations of the latents, shaped like them. None before encoding.
        content: () -> a hash of the samples that is cheaper than reading all of them. None if there is no such hash.
        class_names: The names of the classes, by number. None where they have none.
        on_demand: Whether `read` decodes the samples at each call, so that it pays to read ahead in other processes.
    """

    name: str
    count: int
    shape: tuple[int, ...]
    labels: Tensor | None
    read: Callable[[Tensor], Tensor] | None
    prompts: Sequence[str] | None = None
    embed: Callable[[Tensor], Mapping[str, Tensor]] | None = None
    spread: Callable[[Tensor], Tensor] | None = None
    content: Callable[[], str] | None = None
    class_names: tuple[str, ...] | None = None
    on_demand: bool = False

    @property
    def classes(self) -> int:
        """The number of classes, those with a name but without a sample among them. 0 without labels."""
        return 0 if self.labels is None else max(int(self.labels.max()) + 1, len(self.class_names or ()))

    @property
    def elements(self) -> float:
        """The number of elements of a sample, on average."""
        return math.prod(self.shape)

    def described(self) -> dict[str, Any]:
        """Return the size of the data, as plain values."""
        return {"count": self.count, "shape": list(self.shape), "classes": self.classes}

    @cached_property
    def digest(self) -> dict[str, Any]:
        """The count, the shape, hashes of labels and prompts, and means of parts of some samples, as plain values.

        `unseen` are the classes without a sample, if there are any.

        A checkpoint keeps it, so that a resume notices other data. It has means and no hash of pixels, since versions
        of a JPEG decoder differ by a grey level. They are left out if a second reading gives others, as where samples
        are augmented.
        """
        found = self.described()
        if self.labels is not None:
            found["labels"] = values_hash(self.labels.tolist())
            if unseen := (self.labels.bincount(minlength=self.classes) == 0).nonzero().flatten().tolist():
                found["unseen"] = unseen
        if self.class_names is not None:
            found["class_names"] = list(self.class_names)
        if self.prompts is not None:
            found["prompts"] = values_hash(list(self.prompts))
        if self.read is not None and (means := self._means()) == self._means():
            found["samples"] = means
        return found

    def _means(self) -> list[list[float | None]]:
        """Return the means of the parts of some samples, [N, SAMPLE_PARTS]. None for those that are not finite."""
        positions = torch.linspace(0, self.count - 1, min(SAMPLED, self.count)).round().long()
        means: list[list[float | None]] = []
        for position in positions.split(1):  # one after another, since a sample may be large
            parts = self.images(position)[0].double().flatten().tensor_split(SAMPLE_PARTS)
            values = [float(part.mean()) for part in parts if len(part)]
            means.append([round(value, 4) if math.isfinite(value) else None for value in values])
        return means

    def pixels_hash(self) -> str:
        """Return a hash of the samples, the cheap one if there is one. Raises UserError if there are no samples."""
        if self.content is not None:
            return self.content()
        digest = hashlib.sha256()
        for positions in torch.arange(self.count).split(HASHED_AT_ONCE):
            digest.update(self.images(positions).numpy().tobytes())
        return digest.hexdigest()

    def order(self, seed: int, index: Tensor) -> Tensor:
        """Return the positions [B] of the items `index` [B] in an endless stream of shuffled epochs."""
        return order(self.count, seed, index)

    def images(self, positions: Tensor) -> Tensor:
        """Return the samples at `positions` [B], float32 [B, C, *spatial].

        Raises:
            UserError: The data set has conditions alone.
        """
        if self.read is None:
            raise UserError(f"data: {self.name} has no images; name a data set of real ones (digits, images)")
        return to_floats(self.read(positions))


def to_floats(samples: Tensor) -> Tensor:
    """Return samples [B, ...] in float32: the levels of uint8 images in [-1, 1], and any others as they are."""
    return samples.float() / 127.5 - 1 if samples.dtype == torch.uint8 else samples


def values_hash(values: Sequence[Any]) -> str:
    """Return the sha256 of plain values."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def order(count: int, seed: int, index: Tensor) -> Tensor:
    """Return the positions of items in an endless stream of shuffled epochs.

    Args:
        count: The number of items of an epoch.
        seed: The seed of the permutations. Every epoch has its own.
        index: The numbers [B] of the items in the stream.

    Returns:
        Positions [B], from 0 to `count` - 1.
    """
    positions = torch.empty_like(index)
    for epoch in torch.unique(index // count).tolist():
        here = index // count == epoch
        positions[here] = _permutation(count, seed, epoch)[index[here] % count]
    return positions


@lru_cache(maxsize=4)  # a batch touches at most two neighbouring epochs, of images and of pairs
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
