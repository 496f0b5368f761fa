"""Running means on the device: nothing is read by the host until a log point."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor


class Meter:
    """Named (sum, count) pairs, float64 [2] on the device; mergeable over micro-batches, updates and ranks."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor) -> None:
        """Add every element of `values`."""
        count = values.new_full((), values.numel(), dtype=torch.float64)  # filled on the device: new_tensor would wait
        pair = torch.stack([values.detach().double().sum(), count])
        total = self.totals.get(name)
        self.totals[name] = pair if total is None else total.add_(pair)

    def rows(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """Every rank's pairs, {name: [world, 2]} on the CPU: the exact state of the meter, for a checkpoint."""
        if not self.totals:
            return {}
        names = sorted(self.totals)  # the order of a meter that a checkpoint gave back
        gathered = accelerator.gather(torch.stack([self.totals[name] for name in names])[None])
        return dict(zip(names, gathered.cpu().unbind(1), strict=True))

    def load(self, rows: dict[str, Tensor], rank: int, world: int, device: torch.device) -> None:
        """Take this rank's pairs back; of another number of ranks, the first takes all."""
        for name, pairs in rows.items():
            mine = pairs[rank] if len(pairs) == world else pairs.sum(0) * (rank == 0)
            self.totals[name] = mine.to(device)

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over all ranks since the last read, and start anew. The host waits for the device here."""
        means = {name: float(p[:, 0].sum() / p[:, 1].sum()) for name, p in self.rows(accelerator).items()}
        self.totals = {}
        return means
