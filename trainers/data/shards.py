"""Tables that lie in shards on disk. The shards are mapped into memory and not read."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        count: The number of rows.
        shards: {column: rows} of each shard, in order. All shards but the last have the same number of rows.
    """

    count: int
    shards: tuple[Mapping[str, Tensor], ...]

    def rows(self, positions: Tensor, *names: str) -> dict[str, Tensor]:
        """Return some rows.

        Args:
            positions: The numbers of the rows, int64 [B].
            *names: The columns. Without names, all columns.

        Returns:
            {column: [B, ...]}.
        """
        length = len(next(iter(self.shards[0].values())))
        found = [(self.shards[position // length], position % length) for position in positions.tolist()]
        return {name: torch.stack([shard[name][row] for shard, row in found]) for name in names or self.shards[0]}
