"""Samples of several sizes, in buckets of one size each. A global batch has the samples of one bucket."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from distill.errors import UserError
from trainers.data.dataset import Dataset, values_hash


class Turn(NamedTuple):
    """The samples that a global batch is drawn from.

    Attributes:
        data: The data set of one shape.
        start: The position of its first sample in the whole data set.
        number: The number of batches that were drawn from it before.
    """

    data: Dataset
    start: int
    number: int


@dataclass(frozen=True, kw_only=True)
class Buckets(Dataset):
    """Data sets that differ in the size of their samples, as one. Positions count through them, one after the other.

    `shape` is that of previews and evaluations.

    Attributes:
        parts: The data sets, each of one shape.
    """

    parts: tuple[Dataset, ...]

    @classmethod
    def of(cls, parts: Sequence[Dataset], shape: tuple[int, ...]) -> Self:
        """Join data sets of one kind.

        Args:
            parts: The data sets, whose samples differ in size alone.
            shape: The shape of previews and evaluations.
        """
        first, count = parts[0], sum(part.count for part in parts)
        labels = prompts = None
        if first.labels is not None:
            labels = torch.cat([part.labels for part in parts if part.labels is not None])
        if first.prompts is not None:
            prompts = [prompt for part in parts for prompt in part.prompts or ()]
        whole = cls(first.name, count, shape, labels, None, prompts, class_names=first.class_names, parts=())
        return whole.with_parts(parts)

    def with_parts(self, parts: Sequence[Dataset]) -> Self:
        """Return the same data with other samples, as after their encoding."""
        first = parts[0]
        return replace(
            self,
            parts=tuple(parts),
            read=None if first.read is None else lambda positions: _read(parts, "read", positions),
            spread=None if first.spread is None else lambda positions: _read(parts, "spread", positions),
            content=lambda: values_hash([part.pixels_hash() for part in parts]),
            on_demand=any(part.on_demand for part in parts),
        )

    @property
    def elements(self) -> float:
        return sum(part.count * math.prod(part.shape) for part in self.parts) / self.count

    def described(self) -> dict[str, Any]:
        return super().described() | {"buckets": [[part.count, *part.shape] for part in self.parts]}

    def turn(self, batch: int) -> Turn:
        """Return the bucket of a global batch. Of N batches in a row, each has N times its share of the samples."""
        start, rest = 0, self.count
        for part in self.parts:
            before = batch * part.count // rest  # of the batches that are left, those of this bucket until here
            if (batch + 1) * part.count // rest > before:
                return Turn(part, start, before)
            start, rest, batch = start + part.count, rest - part.count, batch - before
        raise AssertionError("the last bucket takes all batches that are left")


def _read(parts: Sequence[Dataset], what: str, positions: Tensor) -> Tensor:
    """Return the samples, or what else a function of the parts returns, at positions [B] in one bucket."""
    start = 0
    for part in parts:
        if start <= int(positions.min()) and int(positions.max()) < start + part.count:
            found: Tensor = getattr(part, what)(positions - start)
            return found
        start += part.count
    raise UserError(f"data: {parts[0].name} is in buckets, and this needs samples of one size; leave data.buckets out")


def nearest_aspects(sizes: Tensor, buckets: Sequence[tuple[int, int]]) -> Tensor:
    """Return the number [N] of the bucket whose aspect is nearest to that of a picture, by the ratio of the two.

    Args:
        sizes: Height and width of each picture, [N, 2].
        buckets: Height and width of each bucket. The first one of several that are equally near is taken.
    """
    aspects = [(one[..., 0] / one[..., 1]).log() for one in (sizes.double(), torch.tensor(buckets).double())]
    return (aspects[0][:, None] - aspects[1]).abs().argmin(1)
