"""The condition of a batch: named tensors, such as class labels, that say which sample is wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from distill.random import expand, to_device

AUGMENT = "augment"
"""The name of the labels [B, augment_dim] that say how samples were augmented. Only a batch of training has them."""


class Condition(dict[str, Tensor]):
    """Named tensors [B, ...] that condition a batch. The condition of an unconditional model is empty.

    Class labels, int64 [B], have the name `labels`. Text embeddings have the names that the family of their network
    gives them, such as `prompt` and `mask`. Conditions are never changed in place: batches share them.
    """

    @classmethod
    def of(cls, value: ConditionLike) -> Condition:
        """Return `value` as a condition.

        Args:
            value: Class labels, int64 [B], a mapping of names to tensors [B, ...], or None for no condition. A
                Condition is returned as it is.
        """
        if isinstance(value, Condition):
            return value
        if isinstance(value, Tensor):
            return cls(labels=value)
        return cls(value or {})

    @property
    def labels(self) -> Tensor | None:
        """The class labels, int64 [B], or None where there are none."""
        return self.get("labels")

    @property
    def plain(self) -> Tensor | dict[str, Tensor] | None:
        """The simplest form of the condition that `of` takes: a tensor for labels alone, and None for no tensors."""
        return self["labels"] if self.keys() == {"labels"} else dict(self) or None

    def map(self, function: Callable[[Tensor], Tensor]) -> Condition:
        """Return the condition with `function` applied to each of its tensors."""
        return Condition({name: function(value) for name, value in self.items()})

    def to(self, device: torch.device, dtype: torch.dtype) -> Condition:
        """Return the condition on `device`, its floating-point tensors in `dtype`."""
        return self.map(lambda value: to_device(value, device, dtype))

    def rows(self, index: slice | Tensor) -> Condition:
        """Return the condition of the samples at `index`."""
        return self.map(lambda value: value[index])

    def cat(self, other: Condition) -> Condition:
        """Return the conditions [A, ...] of this batch and [B, ...] of another batch as one [A + B, ...]."""
        return Condition({name: torch.cat([value, other[name]]) for name, value in self.items()})

    def where(self, chosen: Tensor, other: Condition) -> Condition:
        """Return the condition in which the `chosen` samples (bool [B]) have the condition of `other`."""

        def pick(name: str, value: Tensor) -> Tensor:
            return torch.where(expand(to_device(chosen, value.device, value.dtype), value), other[name], value)

        return Condition({name: pick(name, value) for name, value in self.items()})

    def repeat_as(self, other: Condition) -> Condition:
        """Repeat the condition of one sample, [...] without a batch dimension, for every sample of `other` [B, ...].

        The result [B, ...] has the devices and the dtypes of `other`. The labels of an augmentation are those of
        `other`: they belong to the sample, and every condition keeps them.

        Raises:
            KeyError: This condition lacks another tensor of `other`.
        """
        return Condition(
            {name: value if name == AUGMENT else _repeat(self[name], value) for name, value in other.items()}
        )


ConditionLike: TypeAlias = Tensor | Mapping[str, Tensor] | None
"""The types that `Condition.of` takes."""


def _repeat(one: Tensor, many: Tensor) -> Tensor:
    if not one.ndim:  # a kernel takes a scalar of the host as an argument: nothing is copied, nothing reads its value
        return torch.zeros_like(many) + one
    return one.to(many.device, many.dtype).expand_as(many)
