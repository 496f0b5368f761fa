"""An image data set in memory or decoded on demand, or labels alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from distill.errors import UserError


@dataclass(frozen=True)
class Dataset:
    """`count` images of `shape` (C, H, W) with `labels` int64 [count] or None.

    `read(positions)` returns the images at int64 positions [B] as float32 [B, C, H, W] in [-1, 1]; None where there
    are labels alone, which is all that a data-free objective needs.
    """

    name: str
    count: int
    shape: tuple[int, int, int]
    labels: Tensor | None
    read: Callable[[Tensor], Tensor] | None

    @property
    def classes(self) -> int:
        """Number of classes; 0 without labels."""
        return 0 if self.labels is None else int(self.labels.max()) + 1

    def order(self, seed: int, index: Tensor) -> Tensor:
        """See `order`."""
        return order(self.count, seed, index)

    def images(self, positions: Tensor) -> Tensor:
        """The images at `positions` [B], float32 [B, C, H, W] in [-1, 1]; raises UserError where there are none."""
        if self.read is None:
            raise UserError(f"data: {self.name} has no images; name a data set of real ones (digits, images)")
        return self.read(positions)


def order(count: int, seed: int, index: Tensor) -> Tensor:
    """Positions [B] of the items `index` [B] in an endless stream of epochs of `count`, each its own permutation."""
    positions = torch.empty_like(index)
    for epoch in torch.unique(index // count).tolist():
        here = index // count == epoch
        positions[here] = _permutation(count, seed, epoch)[index[here] % count]
    return positions


@lru_cache(maxsize=4)  # a batch touches at most two neighbouring epochs, of images and of pairs
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
