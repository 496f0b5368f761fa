"""Tables that lie in shards on disk. The shards are mapped into memory and not read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from distill.errors import UserError, require
from distill.weights import is_finite


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        count: The number of rows.
        shards: {column: rows} of each shard, in order. All shards but the last have the same number of rows.
        folder: The folder of the shards.

    Raises:
        UserError: The shards do not make such a table.
    """

    count: int
    shards: tuple[Mapping[str, Tensor], ...]
    folder: Path

    def __post_init__(self) -> None:
        first = self.shards[0]
        require(
            bool(first) and all(value.ndim for value in first.values()), f"'{self.folder}': its shards hold no rows"
        )
        self.check_like(first)
        length = len(next(iter(first.values())))
        for number, shard in enumerate(self.shards):
            rows = min(length, self.count - number * length)
            wrong = [name for name, value in shard.items() if len(value) != rows]
            require(
                rows > 0 and not wrong, f"'{self.folder}': shard {number} has not {max(rows, 0):,} rows of each column"
            )
        require(len(self.shards) * length >= self.count, f"'{self.folder}': its shards have not {self.count:,} rows")

    def check_like(self, rows: Mapping[str, Tensor]) -> None:
        """Raise UserError unless all shards have the columns of `rows` [N, ...], with their shapes and dtypes."""
        expected = {name: (value.shape[1:], value.dtype) for name, value in rows.items()}
        for number, shard in enumerate(self.shards):
            found = {name: (value.shape[1:], value.dtype) for name, value in shard.items()}
            wrong = [name for name in found.keys() | expected if found.get(name) != expected.get(name)]
            require(not wrong, f"'{self.folder}': column '{min(wrong, default='')}' of shard {number} has another form")

    def rows(self, positions: Tensor, *names: str) -> dict[str, Tensor]:
        """Return some rows.

        Args:
            positions: The numbers of the rows, int64 [B].
            *names: The columns. Without names, all columns.

        Returns:
            {column: [B, ...]}.

        Raises:
            UserError: One of the rows is not finite.
        """
        length = len(next(iter(self.shards[0].values())))
        found = [(self.shards[position // length], position % length) for position in positions.tolist()]
        rows = {name: torch.stack([shard[name][row] for shard, row in found]) for name in names or self.shards[0]}
        for name, values in rows.items():
            if not is_finite(values):
                raise UserError(f"'{self.folder}': column '{name}' is not finite in rows {positions.tolist()!s:.60}")
        return rows
