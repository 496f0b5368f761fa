"""Tables in shards on disk, mapped into memory, not read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def rows(shards: Sequence[Mapping[str, Tensor]], positions: Tensor, *names: str) -> dict[str, Tensor]:
    """Rows [B, ...] of the named columns, or of all, at int64 positions [B]; shards are of equal length but for the
    last."""
    length = len(next(iter(shards[0].values())))
    found = [(shards[position // length], position % length) for position in positions.tolist()]
    return {name: torch.stack([shard[name][row] for shard, row in found]) for name in names or shards[0]}
