"""The micro-batches of one rank, as a function of the stream's name and the images done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from distill.denoiser import Condition
from distill.objectives import Batch, Pairs
from distill.random import Random
from trainers.data.dataset import Dataset, order
from trainers.data.pairs import PairSet, condition
from trainers.recipe.run import Experiment

C = TypeVar("C", Tensor, Condition)


class Batches:
    """Draws this rank's share of a global batch.

    A sample is named by its stream and its global index: the numbers it gets do not depend on the number of
    processes, on micro-batches or on what ran before. What is looked up lies on the host, and so do the positions, so
    that no batch waits for the device.
    """

    def __init__(
        self,
        run: Experiment,
        dataset: Dataset,
        real: bool,
        rank: int,
        world: int,
        device: torch.device,
        pairs: PairSet | None = None,
    ) -> None:
        self.run, self.dataset, self.real, self.device, self.pairs = run, dataset, real, device, pairs
        self.rank, self.world = rank, world
        self.size = run.batch_size // (world * run.micro_batches)

    def micro(self, stream: str, first: int, micro: int) -> Batch:
        """Micro-batch `micro` of the global batch that starts at sample `first` of `stream`.

        Its share of the batch's ODE pairs comes with the stream "generator" alone.
        """
        start = first + (micro * self.world + self.rank) * self.size
        index = torch.arange(start, start + self.size)
        host = Random.at(self.run.seed, index).stream(stream)
        random = Random(self._here(host.keys))
        pairs = self._pairs(first, micro) if self.pairs is not None and stream == "generator" else None
        if not self.real:
            noise, cond = inputs(self.dataset, random, self.run.dtype, host)
            return Batch(noise, random, cond, pairs=pairs)
        noise = _noise(self.dataset, random, self.run.dtype)
        positions = self.dataset.order(self.run.seed, index)
        real = self._here(self.dataset.images(positions))
        if self.dataset.spread is not None:  # another draw of the latent at every visit
            std = self._here(self.dataset.spread(positions))
            real = real + std * random.stream("latent of an image").normal(*real.shape[1:], dtype=real.dtype)
        cond = self._here(self.dataset.cond(positions))  # real and generated images share their conditions
        return Batch(noise, random, cond, real, pairs)

    def _pairs(self, first: int, micro: int) -> Pairs:
        assert self.pairs is not None
        per_batch = self.pairs.per_batch
        size = per_batch // (self.world * self.run.micro_batches)
        start = first // self.run.batch_size * per_batch + (micro * self.world + self.rank) * size
        rows = self.pairs.rows(order(self.pairs.count, self.run.seed, torch.arange(start, start + size)))
        return Pairs(self._here(rows["noise"]), self._here(rows["target"]), self._here(condition(rows)))

    def _here(self, value: C) -> C:
        """On the device, in the run's precision."""
        return placed(value, self.device, self.run.dtype)


def inputs(
    dataset: Dataset, random: Random, dtype: torch.dtype = torch.float32, host: Random | None = None
) -> tuple[Tensor, Condition]:
    """A generator's inputs: unit normal noise [B, C, H, W] and conditions, labels by their frequency in the data set.

    `host` are the same random numbers on the host: without them a lookup waits for the device.
    """
    host = host or Random(random.keys.cpu())
    positions = (host.stream("label").uniform() * dataset.count).long()
    return _noise(dataset, random, dtype), placed(dataset.cond(positions), random.keys.device, dtype)


def preview(dataset: Dataset, columns: Tensor) -> Condition:
    """A condition for each column number [B]: the classes in turn, the first prompts in turn, or None."""
    if dataset.prompts is not None:
        return placed(dataset.cond((columns % dataset.count).cpu()), columns.device, torch.float32)
    return None if dataset.labels is None else columns % dataset.classes


def placed(value: C, device: torch.device, dtype: torch.dtype) -> C:
    """A tensor or a condition on `device`, what is of floating type in it in `dtype`."""
    if isinstance(value, Mapping):
        return {name: placed(one, device, dtype) for name, one in value.items()}
    if value is None:
        return None
    if device.type == "cuda" and value.device.type == "cpu":  # from pinned memory the copy does not make the host wait
        value = value.pin_memory().to(device, non_blocking=True)
    return value.to(device, dtype if value.is_floating_point() else value.dtype)


def _noise(dataset: Dataset, random: Random, dtype: torch.dtype) -> Tensor:
    return random.stream("latent").normal(*dataset.shape, dtype=dtype)
