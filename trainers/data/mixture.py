"""A mixture of two data sets, in fixed shares."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from distill.errors import UserError
from trainers.data.buckets import Buckets
from trainers.data.dataset import Dataset, values_hash
from trainers.data.source import Data

FINEST = 10**6  # the largest denominator of a share, so that numbers of samples up to 10^12 can be multiplied by it
OTHER_SEED = 2**31  # added to the seed of the second data set; seeds of runs are below


@dataclass(frozen=True)
class Mixture(Data):
    """Two sources in one stream, of which each sample comes from one by its number. A part may be a mixture itself.

    Of any N samples in a row, the first source gives `share` times N, rounded up or down. Each source has epochs of its
    own. Both must have images of one shape or none, and labels of the same classes, prompts, or neither.

    Attributes:
        first: The first source.
        second: The second source.
        share: The part of the samples that come from the first source. None for that of its samples among all.
    """

    first: Data
    second: Data
    share: float | None = None

    def __post_init__(self) -> None:
        if self.share is not None and not 1 <= self.share * FINEST <= FINEST - 1:
            raise UserError(f"share: must be from {1 / FINEST:f} to {1 - 1 / FINEST:f}, got {self.share}")

    def load(self) -> Dataset:
        first, second = self.first.load(), self.second.load()
        for what, one, other in (
            ("samples of shape", first.shape, second.shape),
            ("images", first.read is not None, second.read is not None),
            ("labels", first.labels is not None, second.labels is not None),
            ("prompts", first.prompts is not None, second.prompts is not None),
            ("classes named", first.class_names, second.class_names),
        ):
            if one != other:
                raise UserError(f"data: a mixture is of one kind: {first.name} has {what} {one}, {second.name} {other}")
        if isinstance(first, Buckets) or isinstance(second, Buckets):
            raise UserError("data: a part of a mixture has samples of one size; leave its buckets out")
        share = Fraction(first.count, first.count + second.count)
        if self.share is not None:
            share = Fraction(self.share).limit_denominator(FINEST)
        labels = prompts = None
        if first.labels is not None and second.labels is not None:
            labels = torch.cat([first.labels, second.labels])
        if first.prompts is not None and second.prompts is not None:
            prompts = [*first.prompts, *second.prompts]

        def read(positions: Tensor) -> Tensor:
            return chosen(positions < first.count, first.images, second.images, positions, positions - first.count)

        return Mixed(
            f"{first.name}+{second.name}",
            first.count + second.count,
            first.shape,
            labels,
            None if first.read is None else read,
            prompts,
            content=lambda: values_hash([first.pixels_hash(), second.pixels_hash()]),
            class_names=first.class_names,
            on_demand=first.on_demand or second.on_demand,
            first=first,
            second=second,
            share=share,
        )


@dataclass(frozen=True, kw_only=True)
class Mixed(Dataset):
    """The samples of two data sets, those of the first one first.

    Attributes:
        first: The first data set.
        second: The second data set.
        share: The part of the samples of a stream that come from the first one.
    """

    first: Dataset
    second: Dataset
    share: Fraction

    def order(self, seed: int, index: Tensor) -> Tensor:
        before = index * self.share.numerator // self.share.denominator  # samples of the first one until here
        is_first = (index + 1) * self.share.numerator // self.share.denominator > before
        return chosen(
            is_first,
            lambda at: self.first.order(seed, at),
            lambda at: self.first.count + self.second.order(seed + OTHER_SEED, at),
            before,
            index - before,
        )


def chosen(
    is_first: Tensor,
    first: Callable[[Tensor], Tensor],
    second: Callable[[Tensor], Tensor],
    of_first: Tensor,
    of_second: Tensor,
) -> Tensor:
    """Return `first` of the values where `is_first` [B] holds, and `second` of the others, [B, ...].

    Args:
        is_first: Where the first function counts.
        first: A function of values [N].
        second: Another one.
        of_first: The values [B] for the first function.
        of_second: The values [B] for the second one.
    """
    if is_first.all():
        return first(of_first)
    other = second(of_second[~is_first])
    result = other.new_empty(len(is_first), *other.shape[1:])
    result[~is_first] = other
    if is_first.any():
        result[is_first] = first(of_first[is_first])
    return result
