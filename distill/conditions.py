"""The condition of a batch: named tensors that say what each sample is to show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from distill.random import expand


class Condition(dict[str, Tensor]):
    """Named tensors [B, ...]; empty where a model is unconditional. Treat it as immutable.

    Class labels, int64 [B], have the name `labels`. Text embeddings have the names that the family of their network
    gives them, such as `prompt` and `mask`.
    """

    @classmethod
    def of(cls, value: ConditionLike) -> Condition:
        """Return `value` as a condition: labels [B], a mapping of tensors, None, or a condition, which stays itself."""
        if isinstance(value, Condition):
            return value
        if isinstance(value, Tensor):
            return cls(labels=value)
        return cls(value or {})

    @property
    def labels(self) -> Tensor | None:
        """The class labels, int64 [B]; None where there are none."""
        return self.get("labels")

    @property
    def plain(self) -> Tensor | dict[str, Tensor] | None:
        """The condition in the form that `of` takes: labels alone as a tensor, an empty condition as None."""
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
        return Condition({n: torch.where(expand(chosen, value), other[n], value) for n, value in self.items()})

    def repeat_as(self, other: Condition) -> Condition:
        """Return this condition of one sample, [...] without a batch dimension, for every sample of `other`."""
        return Condition({name: _repeat(self[name], value) for name, value in other.items()})


ConditionLike: TypeAlias = Tensor | Mapping[str, Tensor] | None
"""Everything that `Condition.of` takes."""


def to_device(value: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return `value` on `device`, in `dtype` where it is of floating type."""
    if device.type == "cuda" and value.device.type == "cpu":  # from pinned memory the copy does not make the host wait
        value = value.pin_memory().to(device, non_blocking=True)
    return value.to(device, dtype if value.is_floating_point() else value.dtype)


def _repeat(one: Tensor, many: Tensor) -> Tensor:
    if not one.ndim:  # filled on the device: a copy of a scalar from the host would wait for it
        return torch.full_like(many, one.item())
    return one.to(many.device, many.dtype).expand_as(many)
