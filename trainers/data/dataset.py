"""A data set: samples in memory or decoded on demand, or conditions alone (labels, prompts)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from distill.errors import UserError

UNKNOWN: tuple[int, ...] = ()
"""The shape of prompts alone, until the shape of the teacher's samples is known."""


@dataclass(frozen=True)
class Dataset:
    """Samples with labels, with prompts, or with neither; or conditions alone.

    Attributes:
        name: The name in messages and in the names of protocols.
        count: The number of samples.
        shape: (C, *spatial) of a sample; UNKNOWN for prompts alone until the teacher is known.
        labels: Int64 [count].
        read: (int64 positions [B]) -> samples on the host, float32 [B, C, *spatial], images in [-1, 1]; None where
            there are conditions alone, which is all that a data-free objective needs. Once the data set is encoded for
            a teacher of latents, `read` returns the means of latents.
        prompts: As many prompts as there are samples.
        embed: (positions [B]) -> the prompts as tensors [B, ...] by name, once the data set is encoded.
        spread: (positions [B]) -> the standard deviations of the latents, once the data set is encoded.
        content: () -> a hash of what `read` reads, where there is a hash that takes less than reading it.
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

    @property
    def classes(self) -> int:
        """The number of classes; 0 without labels."""
        return 0 if self.labels is None else int(self.labels.max()) + 1

    def order(self, seed: int, index: Tensor) -> Tensor:
        """Return the positions [B] of the items `index` [B] in an endless stream of shuffled epochs."""
        return order(self.count, seed, index)

    def images(self, positions: Tensor) -> Tensor:
        """Return the samples at `positions` [B], float32 [B, C, *spatial]; raises UserError where there are none."""
        if self.read is None:
            raise UserError(f"data: {self.name} has no images; name a data set of real ones (digits, images)")
        return self.read(positions)


def order(count: int, seed: int, index: Tensor) -> Tensor:
    """Return positions [B] of the items `index` [B] in an endless stream of epochs of `count`.

    Each epoch is a permutation of its own.
    """
    positions = torch.empty_like(index)
    for epoch in torch.unique(index // count).tolist():
        here = index // count == epoch
        positions[here] = _permutation(count, seed, epoch)[index[here] % count]
    return positions


@lru_cache(maxsize=4)  # a batch touches at most two neighbouring epochs, of images and of pairs
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
