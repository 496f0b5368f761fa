"""An image data set in memory or decoded on demand, or conditions alone: labels, prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from distill.denoiser import Condition
from distill.errors import UserError

UNKNOWN = (0, 0, 0)


@dataclass(frozen=True)
class Dataset:
    """`count` images of `shape` (C, H, W) with `labels` int64 [count], with as many `prompts`, or with neither.

    `read(positions)` returns the images at int64 positions [B] on the host as float32 [B, C, H, W] in [-1, 1]; None
    where there are conditions alone, which is all that a data-free objective needs. `content()` is a hash of what it
    reads, where there is one that takes less than reading it.

    Prompts alone have the shape of the teacher's samples, UNKNOWN until it is there. `prepare` gives what a teacher
    wants besides: `embed(positions)`, the prompts as tensors [B, ...]; and for one of latents `read` returns those,
    their means, and `spread(positions)` their standard deviations.
    """

    name: str
    count: int
    shape: tuple[int, int, int]
    labels: Tensor | None
    read: Callable[[Tensor], Tensor] | None
    prompts: Sequence[str] | None = None
    embed: Callable[[Tensor], Mapping[str, Tensor]] | None = None
    spread: Callable[[Tensor], Tensor] | None = None
    content: Callable[[], str] | None = None

    @property
    def classes(self) -> int:
        """Number of classes; 0 without labels."""
        return 0 if self.labels is None else int(self.labels.max()) + 1

    def cond(self, positions: Tensor) -> Condition:
        """The conditions at `positions` [B], both on the host: labels [B], tensors [B, ...] by name, or None."""
        if self.prompts is not None:
            assert self.embed is not None, "prompts are no condition before `prepare`"
            return self.embed(positions)
        return None if self.labels is None else self.labels[positions]

    def order(self, seed: int, index: Tensor) -> Tensor:
        """See `order`."""
        return order(self.count, seed, index)

    def images(self, positions: Tensor) -> Tensor:
        """What `read` gives at `positions` [B], float32 [B, C, H, W]; raises UserError where there are no images."""
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
