"""Running means that stay on the device, so that the host waits for the device at log points alone."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from distill.paths import match

BINS = ("nsr<0.1", "nsr 0.1-0.32", "nsr 0.32-1", "nsr 1-3.2", "nsr 3.2-10", "nsr>10")  # each half a decade wide


class Noted(NamedTuple):
    """Values [N] that were added to a mean, and the numbers [N] of their bins, mostly on the host. None for no bins."""

    name: str
    values: Tensor
    bins: Tensor | None


class Meter:
    """Named running sums and counts, from which the log computes means.

    Sums and counts add up over micro-batches, updates and ranks, as means do not. What is added waits until `flush`,
    which takes the same few kernels for any number of names.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}  # on the host, but where the bins of a value are known to the device alone
        self._waiting: list[Noted] = []

    @property
    def totals(self) -> dict[str, Tensor]:
        """(sum, count) by name, float64 [1, 2] on the device, or [6, 2] for values that are binned by their nsr."""
        self.flush()
        return {name: torch.stack([sums, match(self._counts[name], sums)], 1) for name, sums in self._sums.items()}

    def add(self, name: str, values: Tensor, nsr: Tensor | None = None) -> None:
        """Add every element of `values` to a running mean.

        Args:
            name: The name in the log.
            values: Any shape, or [B] where `nsr` is given. They must not change before `flush`.
            nsr: The noise-to-signal ratios [B] by which the values are binned. None for no bins.
        """
        bins = None if nsr is None else (2 * nsr.double().log10() + 3).floor().clamp(0, len(BINS) - 1)
        self._waiting.append(Noted(name, values.detach().flatten(), bins))

    def flush(self) -> None:
        """Add up all that waits."""
        waiting, self._waiting = self._waiting, []
        longest = max((len(one.values) for one in waiting), default=0)
        groups: dict[int, list[Noted]] = {}
        for one in waiting:  # a single number goes with the longest values, as the first of as many
            groups.setdefault(longest if len(one.values) == 1 else len(one.values), []).append(one)
        for size, group in groups.items():
            self._add_group(size, group)

    def _add_group(self, size: int, group: list[Noted]) -> None:
        """Add values of the same number, `size`, and single numbers."""
        values = torch.stack([one.values.expand(size) for one in group])
        inside = torch.zeros(len(group), len(BINS), size, dtype=torch.bool)
        if any(one.bins is not None and one.bins.device != inside.device for one in group):
            inside = inside.to(values.device)
        for row, one in zip(inside, group, strict=True):
            if one.bins is None:
                row[0, : len(one.values)] = True
            else:
                row.copy_(one.bins == torch.arange(len(BINS), device=one.bins.device)[:, None])
        # A value that is not finite must not reach the other bins and names, as it would in a product with 0.
        sums = torch.where(match(inside, values), values[:, None], 0).sum(2, dtype=torch.float64)
        known: dict[str, tuple[Tensor, Tensor]] = {}
        for one, own_sums, own_counts in zip(group, sums, inside.sum(2).double(), strict=True):
            name, rows = one.name, slice(1 if one.bins is None else None)
            if name in known:  # a second time, as of another micro-batch: in the order in which they came
                _add_each(known.values())
                known = {}
            if name in self._sums:
                known[name] = self._sums[name], own_sums[rows]
                self._counts[name] = _plus(self._counts[name], own_counts[rows])
            else:
                self._sums[name], self._counts[name] = own_sums[rows], own_counts[rows]
        _add_each(known.values())

    def note(self, name: str, values: Tensor, nsr: Tensor | None = None) -> None:
        """Add a health signal: `add` under the name `health/NAME`."""
        self.add(f"health/{name}", values, nsr)

    def rows(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """Gather the sums and counts of every rank. Collective.

        Returns:
            {name: [world, 1 or 6, 2]} on the CPU.
        """
        if not (totals := self.totals):  # on every rank or on none: all of them add the same names
            return {}
        # Sorted, since a meter that was restored from a checkpoint holds its names in another order.
        names = sorted(totals)
        gathered = accelerator.gather(torch.cat([totals[name] for name in names])[None])  # one message for all
        return dict(zip(names, gathered.cpu().split([len(totals[name]) for name in names], 1), strict=True))

    def load(self, rows: dict[str, Tensor], rank: int, world: int, device: torch.device) -> None:
        """Restore the totals of this rank from those of every rank.

        Args:
            rows: {name: [saved world, 1 or 6, 2]}. With another number of ranks than now, rank 0 takes the sum of all.
            rank: This process.
            world: The number of processes.
            device: The device of the totals.
        """
        for name, pairs in rows.items():
            own = pairs[rank] if len(pairs) == world else pairs.sum(0) * (rank == 0)
            self._sums[name], self._counts[name] = own[:, 0].to(device), own[:, 1]

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over all ranks since the last call, and reset the meter. Collective.

        The host waits for the device here. A binned name gives its mean over all bins, and `NAME/BIN` for each bin
        that has samples.
        """
        means: dict[str, float] = {}
        for name, rows in self.rows(accelerator).items():
            pairs = rows.sum(0)
            means[name] = float(pairs[:, 0].sum() / pairs[:, 1].sum())
            if len(pairs) > 1:
                means |= {f"{name}/{b}": float(s / n) for b, (s, n) in zip(BINS, pairs, strict=True) if n}
        self.reset()
        return means

    def reset(self) -> None:
        """Begin anew."""
        self._sums, self._counts, self._waiting = {}, {}, []


def _plus(one: Tensor, other: Tensor) -> Tensor:
    """Return the sum of counts, on the device where either is: the host would have to wait for the device."""
    device = one.device if other.device.type == "cpu" else other.device
    return one.to(device) + other.to(device)


def _add_each(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Add to the first tensor of each pair the second, in place."""
    if pairs := list(pairs):
        first, second = zip(*pairs, strict=True)
        torch._foreach_add_(first, second)  # torch's private foreach form takes one kernel launch for all
