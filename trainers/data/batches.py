"""The micro-batches of one rank, as a function of the stream's name and the images done."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from distill.objectives import Batch, Pairs
from distill.random import Random
from trainers.data.dataset import Dataset, order
from trainers.data.pairs import PairSet
from trainers.run import Experiment


class Batches:
    """Draws this rank's share of a global batch.

    A sample is named by its stream and its global index: the numbers it gets do not depend on the number of
    processes, on micro-batches or on what ran before.
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
        if dataset.labels is not None:  # looked up where the draws are, so that no batch waits for the device
            dataset = dataclasses.replace(dataset, labels=dataset.labels.to(device))
        self.run, self.dataset, self.real, self.device, self.pairs = run, dataset, real, device, pairs
        self.rank, self.world = rank, world
        self.size = run.batch_size // (world * run.micro_batches)

    def micro(self, stream: str, first: int, micro: int) -> Batch:
        """Micro-batch `micro` of the global batch that starts at sample `first` of `stream`.

        Its share of the batch's ODE pairs comes with the stream "generator" alone.
        """
        start = first + (micro * self.world + self.rank) * self.size
        index = torch.arange(start, start + self.size)
        random = Random.at(self.run.seed, torch.arange(start, start + self.size, device=self.device)).stream(stream)
        noise, cond = inputs(self.dataset, random, self.run.dtype)
        pairs = self._pairs(first, micro) if self.pairs is not None and stream == "generator" else None
        if not self.real:
            return Batch(noise, random, cond, pairs=pairs)
        positions = self.dataset.order(self.run.seed, index)
        real = self._here(self.dataset.images(positions))
        if self.dataset.labels is not None:
            cond = self.dataset.labels[positions.to(self.device)]  # real and generated images share their labels
        return Batch(noise, random, cond, real, pairs)

    def _pairs(self, first: int, micro: int) -> Pairs:
        assert self.pairs is not None
        per_batch = self.pairs.per_batch
        size = per_batch // (self.world * self.run.micro_batches)
        start = first // self.run.batch_size * per_batch + (micro * self.world + self.rank) * size
        rows = self.pairs.rows(order(self.pairs.count, self.run.seed, torch.arange(start, start + size)))
        label = rows["label"].to(self.device) if "label" in rows else None
        return Pairs(self._here(rows["noise"]), self._here(rows["target"]), label)

    def _here(self, images: Tensor) -> Tensor:
        """On the device, in the run's precision."""
        if self.device.type == "cuda":  # from pinned memory the copy does not make the host wait
            images = images.pin_memory()
        return images.to(self.device, self.run.dtype, non_blocking=True)


def inputs(dataset: Dataset, random: Random, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor | None]:
    """A generator's inputs: unit normal noise [B, C, H, W], and labels [B] by their frequency in the data set."""
    noise = random.stream("latent").normal(*dataset.shape, dtype=dtype)
    if dataset.labels is None:
        return noise, None
    positions = (random.stream("label").uniform() * dataset.count).long()
    return noise, dataset.labels.to(noise.device)[positions]
