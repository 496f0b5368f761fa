"""Rows of tables that lie in shards on disk. The shards are mapped into memory and not read."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def rows(shards: Sequence[Mapping[str, Tensor]], positions: Tensor, *names: str) -> dict[str, Tensor]:
    """Return rows of a table.

    Args:
        shards: {column: rows} of each shard, in order. All shards but the last have the same number of rows.
        positions: The numbers of the rows, int64 [B].
        *names: The columns. Without names, all columns.

    Returns:
        {column: [B, ...]}.
    """
    length = len(next(iter(shards[0].values())))
    found = [(shards[position // length], position % length) for position in positions.tolist()]
    return {name: torch.stack([shard[name][row] for shard, row in found]) for name in names or shards[0]}
