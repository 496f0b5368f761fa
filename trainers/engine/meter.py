"""Running means on the device: nothing is read by the host until a log point."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

BINS = ("nsr<0.1", "nsr 0.1-0.32", "nsr 0.32-1", "nsr 1-3.2", "nsr 3.2-10", "nsr>10")  # half decades


class Meter:
    """Named (sum, count) pairs, float64 [1, 2] or by bins of the noise-to-signal ratio [6, 2], on the device.

    Mergeable over micro-batches, updates and ranks.
    """

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, nsr: Tensor | None = None) -> None:
        """Add every element of `values`; those [B] with their `nsr` [B] are binned."""
        values = values.detach().double().flatten()
        if nsr is None:
            count = values.new_full((), values.numel())  # filled on the device: new_tensor would wait
            pair = torch.stack([values.sum(), count])[None]
        else:
            bins = (2 * nsr.double().log10() + 3).floor().clamp(0, len(BINS) - 1)
            inside = bins[:, None] == torch.arange(len(BINS), device=bins.device)
            pair = torch.stack([torch.where(inside, values[:, None], 0).sum(0), inside.double().sum(0)], dim=1)
        total = self.totals.get(name)
        self.totals[name] = pair if total is None else total.add_(pair)

    def note(self, name: str, values: Tensor, nsr: Tensor | None = None) -> None:
        """Add a sign of health."""
        self.add(f"health/{name}", values, nsr)

    def rows(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """Every rank's pairs, {name: [world, 1 or 6, 2]} on the CPU: the exact state of the meter, for a checkpoint."""
        if not self.totals:
            return {}
        names = sorted(self.totals)  # the order of a meter that a checkpoint gave back
        gathered = accelerator.gather(torch.cat([self.totals[name] for name in names])[None])
        return dict(zip(names, gathered.cpu().split([len(self.totals[name]) for name in names], 1), strict=True))

    def load(self, rows: dict[str, Tensor], rank: int, world: int, device: torch.device) -> None:
        """Take this rank's pairs back; of another number of ranks, the first takes all."""
        for name, pairs in rows.items():
            mine = pairs[rank] if len(pairs) == world else pairs.sum(0) * (rank == 0)
            self.totals[name] = mine.to(device)

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over all ranks since the last read, and start anew. The host waits for the device here.

        What is binned gives its mean over all bins under its name, then `name/bin` for each bin that has samples.
        """
        means: dict[str, float] = {}
        for name, rows in self.rows(accelerator).items():
            pairs = rows.sum(0)
            means[name] = float(pairs[:, 0].sum() / pairs[:, 1].sum())
            if len(pairs) > 1:
                means |= {f"{name}/{b}": float(s / n) for b, (s, n) in zip(BINS, pairs, strict=True) if n}
        self.totals = {}
        return means
