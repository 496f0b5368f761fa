"""Running means that stay on the device, so that the host waits for the device at log points alone."""

import torch
from accelerate import Accelerator
from torch import Tensor

from distill.tensors import match

BINS = ("nsr<0.1", "nsr 0.1-0.32", "nsr 0.32-1", "nsr 1-3.2", "nsr 3.2-10", "nsr>10")  # each half a decade wide


class Meter:
    """Named running sums and counts, from which the log computes means.

    Sums and counts add up over micro-batches, updates and ranks, as means do not.

    Attributes:
        totals: (sum, count) by name, float64 [1, 2] on the device, or [6, 2] for values that are binned by their
            noise-to-signal ratio.
    """

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, nsr: Tensor | None = None) -> None:
        """Add every element of `values` to a running mean.

        Args:
            name: The name in the log.
            values: Any shape, or [B] where `nsr` is given.
            nsr: The noise-to-signal ratios [B] by which the values are binned. None for no bins.
        """
        values = values.detach().double().flatten()
        if nsr is None:
            count = values.new_full((), values.numel())  # filled on the device: new_tensor would copy from the host
            pair = torch.stack([values.sum(), count])[None]
        else:
            bins = (2 * nsr.double().log10() + 3).floor().clamp(0, len(BINS) - 1)
            inside = match(bins[:, None] == torch.arange(len(BINS), device=bins.device), values)
            pair = torch.stack([torch.where(inside, values[:, None], 0).sum(0), inside.double().sum(0)], dim=1)
        total = self.totals.get(name)
        self.totals[name] = pair if total is None else total.add_(pair)

    def note(self, name: str, values: Tensor, nsr: Tensor | None = None) -> None:
        """Add a health signal: `add` under the name `health/NAME`."""
        self.add(f"health/{name}", values, nsr)

    def rows(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """Gather the sums and counts of every rank. Collective.

        Returns:
            {name: [world, 1 or 6, 2]} on the CPU.
        """
        if not self.totals:  # on every rank or on none: all of them add the same names
            return {}
        # Sorted, since a meter that was restored from a checkpoint holds its names in another order.
        names = sorted(self.totals)
        gathered = accelerator.gather(torch.cat([self.totals[name] for name in names])[None])  # one message for all
        return dict(zip(names, gathered.cpu().split([len(self.totals[name]) for name in names], 1), strict=True))

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
            self.totals[name] = own.to(device)

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
        self.totals = {}
        return means
