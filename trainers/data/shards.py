"""Tables that lie in shards on disk. The shards are mapped into memory and not read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from distill.errors import UserError, require
from distill.weights import is_finite

LENGTHS, TOKENS = "lengths", "/tokens"


def trim(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return rows of embeddings without those of padding tokens, as columns of a trimmed shard.

    The column LENGTHS, int64 [N], replaces the mask. A column [N, L, ...] of tokens becomes one of all tokens of all
    rows, [sum of lengths, ...], whose name ends in TOKENS. Other columns stay.

    Args:
        rows: The rows [N, ...] with their `mask` [N, L], in which padding follows the tokens.

    Raises:
        UserError: Padding lies before a token.
    """
    mask = rows["mask"].bool()
    lengths = mask.sum(1)
    is_prefix = torch.equal(mask, torch.arange(mask.shape[1], device=mask.device) < lengths[:, None])
    require(is_prefix, "embeddings.trim: the text encoder has padding before tokens; set it to false")
    columns = {LENGTHS: lengths}
    for name, value in rows.items():
        if name != "mask":
            has_tokens = value.shape[:2] == mask.shape
            columns[name + TOKENS if has_tokens else name] = value[mask] if has_tokens else value
    return columns


def has_rows(shard: Mapping[str, Tensor], rows: int) -> bool:
    """Return whether each column of a shard has as many rows. Tokens have as many as the lengths add up to."""
    lengths = shard.get(LENGTHS, torch.zeros(0, dtype=torch.int64))
    are_lengths = lengths.ndim == 1 and not lengths.is_floating_point() and bool((lengths >= 0).all())
    tokens = int(lengths.sum()) if are_lengths else -1
    wanted = {name: tokens if name.endswith(TOKENS) else rows for name in shard}
    return all(value.shape[:1] == (wanted[name],) for name, value in shard.items())


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        count: The number of rows.
        shards: {column: rows} of each shard, in order. All shards but the last have the same number of rows.
        folder: The folder of the shards.
        full: One row [1, ...] as `rows` returns it, where the shards are trimmed. Otherwise None.

    Raises:
        UserError: The shards do not make such a table.
    """

    count: int
    shards: tuple[Mapping[str, Tensor], ...]
    folder: Path
    full: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        first = self.shards[0]
        require(
            bool(first) and all(value.ndim for value in first.values()), f"'{self.folder}': its shards hold no rows"
        )
        self.check_like(first if self.full is None else self.full)
        length = self._length
        for number, shard in enumerate(self.shards):
            rows = min(length, self.count - number * length)
            require(
                rows > 0 and has_rows(shard, rows),
                f"'{self.folder}': shard {number} has not {max(rows, 0):,} rows of each column",
            )
            longest = 0 if self.full is None else self.full["mask"].shape[1]
            fits = self.full is None or bool((shard[LENGTHS] <= longest).all())
            require(fits, f"'{self.folder}': shard {number} has rows of more than {longest:,} tokens")
        require(len(self.shards) * length >= self.count, f"'{self.folder}': its shards have not {self.count:,} rows")

    @property
    def _length(self) -> int:
        """The number of rows of a shard."""
        return len(next(value for name, value in self.shards[0].items() if not name.endswith(TOKENS)))

    def check_like(self, rows: Mapping[str, Tensor]) -> None:
        """Raise UserError unless all shards have the columns of `rows` [N, ...], with their shapes and dtypes.

        Args:
            rows: Rows as `rows` returns them, or those of a shard.
        """
        if self.full is not None and LENGTHS not in rows:
            rows = trim(rows)
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
        length = self._length
        found = [(self.shards[position // length], position % length) for position in positions.tolist()]
        columns = names or (self.shards[0] if self.full is None else self.full)
        rows = {name: torch.stack([self._value(shard, row, name) for shard, row in found]) for name in columns}
        for name, values in rows.items():
            if not is_finite(values):
                raise UserError(f"'{self.folder}': column '{name}' is not finite in rows {positions.tolist()!s:.60}")
        return rows

    def _value(self, shard: Mapping[str, Tensor], row: int, name: str) -> Tensor:
        """Return one value of a row. Embeddings of padding are zeros, which a network with the mask does not read."""
        if self.full is None or name in shard:
            return shard[name][row]
        value, length = torch.zeros_like(self.full[name][0]), int(shard[LENGTHS][row])
        first = int(shard[LENGTHS][:row].sum())
        value[:length] = 1 if name == "mask" else shard[name + TOKENS][first : first + length]
        return value
