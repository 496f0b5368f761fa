"""SiD with samples whose loss or gradient is not finite: chosen by index, on whatever rank they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distill.objectives import Batch, Denoisers
from distill.objectives.sid import SiD
from distill.random import Random


@dataclass(frozen=True, kw_only=True)
class Poisoned(SiD):
    """`samples` of the stream "generator" or "fake" get a loss that is not finite, or 0 with a gradient that is not."""

    samples: tuple[int, ...] = ()
    stream: str = "generator"
    kind: Literal["nan", "inf", "gradient"] = "nan"

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        terms = super().generator_loss(nets, x, batch)
        return self._poison(terms, x, batch) if self.stream == "generator" else terms

    def fake_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        terms = super().fake_loss(nets, x, batch)
        return self._poison(terms, next(iter(terms.values())), batch) if self.stream == "fake" else terms

    def _poison(self, terms: dict[str, Tensor], x: Tensor, batch: Batch) -> dict[str, Tensor]:
        keys = Random.at(0, torch.tensor(self.samples, dtype=torch.int64)).stream(self.stream).keys
        bad = torch.isin(batch.random.keys, keys)
        zero = torch.where(bad, 0 * (x.flatten(1).sum(1) if x.ndim > 1 else x), 1)
        broken = zero.sqrt()  # 0 where it is bad, with the gradient 0 * inf
        value = broken if self.kind == "gradient" else torch.full_like(broken, float(self.kind))
        return {name: torch.where(bad, value, term) for name, term in terms.items()}
