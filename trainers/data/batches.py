"""The micro-batches of one rank, as a function of the stream's name and the number of images done."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.conditions import Condition, to_device
from distill.objectives import Batch, Pairs
from distill.random import Random
from trainers.data.dataset import Dataset, order
from trainers.data.pairs import PairSet, condition_of


@dataclass(frozen=True)
class BatchSizes:
    """How the global batch is divided.

    Attributes:
        batch_size: Samples of the global batch.
        micro_batches: Micro-batches of an update on each rank.
        pairs: ODE pairs of the global batch.
    """

    batch_size: int
    micro_batches: int = 1
    pairs: int = 0


class Batches:
    """Draws this rank's share of a global batch.

    A sample is named by its stream and its global index: the random numbers that it gets do not depend on the number
    of processes, on micro-batches or on what ran before. Lookups and positions stay on the host, so that no batch waits
    for the device.

    Args:
        dataset: The data in the teacher's terms.
        sizes: How the global batch is divided.
        seed: The seed of the run.
        dtype: The dtype of noise, images and conditions.
        real: Whether a batch has real samples.
        rank: This process.
        world: The number of processes.
        device: The device of the batches.
        pairs: ODE pairs, of which each batch of the stream "generator" takes its share.
    """

    def __init__(
        self,
        dataset: Dataset,
        sizes: BatchSizes,
        seed: int,
        dtype: torch.dtype,
        real: bool,
        rank: int,
        world: int,
        device: torch.device,
        pairs: PairSet | None = None,
    ) -> None:
        self.dataset, self.sizes, self.seed, self.dtype = dataset, sizes, seed, dtype
        self.real, self.rank, self.world, self.device, self.pairs = real, rank, world, device, pairs
        self.size = sizes.batch_size // (world * sizes.micro_batches)
        self.pairs_size = sizes.pairs // (world * sizes.micro_batches)

    def micro(self, stream: str, first: int, micro: int) -> Batch:
        """Return micro-batch `micro` of the global batch that starts at sample `first` of `stream`."""
        start = first + (micro * self.world + self.rank) * self.size
        index = torch.arange(start, start + self.size)
        host = Random.at(self.seed, index).stream(stream)
        random = Random(self._to_device(host.keys))
        pairs = self._pairs(first, micro) if self.pairs is not None and stream == "generator" else None
        if not self.real:
            noise, cond = inputs(self.dataset, random, self.dtype, host)
            return Batch(noise, random, cond, pairs=pairs)
        noise = unit_noise(self.dataset.shape, random, self.dtype)
        positions = self.dataset.order(self.seed, index)
        real = self._to_device(self.dataset.images(positions))
        if self.dataset.spread is not None:  # another draw of the latent at every visit
            std = self._to_device(self.dataset.spread(positions))
            real = real + std * random.stream("latent of an image").normal(*real.shape[1:], dtype=real.dtype)
        cond = condition_at(self.dataset, positions).to(self.device, self.dtype)  # generated samples share it
        return Batch(noise, random, cond, real, pairs)

    def _pairs(self, first: int, micro: int) -> Pairs:
        assert self.pairs is not None
        begin = first // self.sizes.batch_size * self.sizes.pairs + (micro * self.world + self.rank) * self.pairs_size
        index = torch.arange(begin, begin + self.pairs_size)
        rows = self.pairs.rows(order(self.pairs.count, self.seed, index))
        cond = condition_of(rows).to(self.device, self.dtype)
        return Pairs(self._to_device(rows["noise"]), self._to_device(rows["target"]), cond)

    def _to_device(self, value: Tensor) -> Tensor:
        return to_device(value, self.device, self.dtype)


def inputs(
    dataset: Dataset, random: Random, dtype: torch.dtype = torch.float32, host: Random | None = None
) -> tuple[Tensor, Condition]:
    """Return a generator's inputs: unit normal noise [B, C, *spatial], and conditions by their frequency in the data.

    `host` holds the same random numbers on the host: without them a lookup waits for the device.
    """
    host = host or Random(random.keys.cpu())
    positions = (host.stream("label").uniform() * dataset.count).long()
    return unit_noise(dataset.shape, random, dtype), condition_at(dataset, positions).to(random.keys.device, dtype)


def condition_at(dataset: Dataset, positions: Tensor) -> Condition:
    """Return the conditions [B, ...] of the samples at `positions` [B], both on the host."""
    if dataset.prompts is not None:
        assert dataset.embed is not None, "prompts are a condition after they are encoded alone"
        return Condition(dataset.embed(positions))
    return Condition() if dataset.labels is None else Condition(labels=dataset.labels[positions])


def preview(dataset: Dataset, columns: Tensor) -> Condition:
    """Return a condition for each column number [B]: the classes in turn, or the first prompts in turn."""
    if dataset.prompts is not None:
        return condition_at(dataset, (columns % dataset.count).cpu()).to(columns.device, torch.float32)
    return labels_in_turn(dataset.classes, columns)


def labels_in_turn(classes: int, columns: Tensor) -> Condition:
    """Return a label for each column number [B], the classes in turn; no condition without classes."""
    return Condition(labels=columns % classes) if classes else Condition()


def unit_noise(shape: tuple[int, ...], random: Random, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a generator's input: unit normal noise [B, *shape]."""
    return random.stream("latent").normal(*shape, dtype=dtype)
