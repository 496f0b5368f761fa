"""The micro-batches of one rank, which are a function of the stream's name and the number of images so far."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from distill.conditions import Condition
from distill.objectives import Batch, Pairs
from distill.random import Random, to_device
from trainers.data.buckets import Buckets, Turn
from trainers.data.dataset import Dataset, order, to_floats
from trainers.data.in_loop import InLoop
from trainers.data.mixture import Mixed, chosen
from trainers.data.pairs import PairSet, condition_of
from trainers.data.read_ahead import SEARCHED, ReadAhead, Request


@dataclass(frozen=True)
class BatchSizes:
    """The sizes of the global batch.

    Attributes:
        batch_size: The number of samples, over all ranks and micro-batches.
        micro_batches: The number of micro-batches of an update on each rank.
        pairs: The number of ODE pairs, over all ranks and micro-batches.
    """

    batch_size: int
    micro_batches: int = 1
    pairs: int = 0


@dataclass
class Batches:
    """The micro-batches of this rank.

    The stream and the global index of a sample determine its random numbers, whatever the number of processes and
    micro-batches, and whatever ran before. Positions are computed on the host, so that no batch waits for the device.

    Attributes:
        dataset: The data as the teacher takes them.
        sizes: The sizes of the global batch.
        seed: The seed of the run.
        dtype: The dtype of noise, images and conditions.
        real: Whether a batch has real samples.
        rank: This process.
        world: The number of processes.
        device: The device of the batches.
        pairs: The ODE pairs for the batches of the stream "generator". None for no pairs.
        texts: Whether a batch has the texts of its prompts.
        workers: The number of processes that read real samples ahead, where the data set decodes them on demand.
        generator_real: Whether batches of the stream "generator" have the real samples too. Their conditions are those
            of the samples either way.
        upcoming: () -> the requests that the training loop will make from the present round on, for the workers.
        seconds: The time that `micro` has waited for real samples so far.
        size: The number of samples of a micro-batch.
        pairs_size: The number of ODE pairs of a micro-batch.
    """

    dataset: Dataset
    sizes: BatchSizes
    seed: int
    dtype: torch.dtype
    real: bool
    rank: int
    world: int
    device: torch.device
    pairs: PairSet | None = None
    texts: bool = False
    workers: int = 0
    generator_real: bool = True
    upcoming: Callable[[], Iterator[Request]] = lambda: iter(())
    seconds: float = 0.0

    def __post_init__(self) -> None:
        parts = self.world * self.sizes.micro_batches
        self.size, self.pairs_size = self.sizes.batch_size // parts, self.sizes.pairs // parts
        self._ahead: ReadAhead | None = None

    def close(self) -> None:
        """End the workers. A later batch starts them again."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def micro(self, stream: str, first: int, micro: int) -> Batch:
        """Return one micro-batch.

        Args:
            stream: The name of the stream, such as "generator" or "fake".
            first: The index of the first sample of the global batch in the stream.
            micro: The number of the micro-batch.
        """
        request = Request(stream, first, micro)
        index = self._index(request)
        random = Random.at(self.seed, index, self.device).stream(stream)
        pairs = self._pairs(first, micro) if self.pairs is not None and stream == "generator" else None
        noise = unit_noise(self._turn(request).data.shape, random, self.dtype)
        positions = self._positions(request)
        cond = condition_at(self.dataset, positions).to(self.device, self.dtype)  # generated samples share it
        if isinstance(encoder := self.dataset.embed, InLoop):
            coming = islice(self.upcoming(), SEARCHED)
            if request in coming and (following := next(coming, None)) is not None:
                encoder.prepare(self._positions(following))
        texts = texts_at(self.dataset, positions) if self.texts else None
        if not self.reads(request):
            return Batch(noise, random, cond, None, pairs, texts)
        real = self._to_device(self._samples(request, positions))
        if self.dataset.spread is not None:  # a new latent of the same image in every epoch
            std = self._to_device(self.dataset.spread(positions))
            real = real + std * random.stream("latent of an image").normal(*real.shape[1:], dtype=real.dtype)
        return Batch(noise, random, cond, real, pairs, texts)

    def reads(self, request: Request) -> bool:
        """Return whether a micro-batch has real samples."""
        return self.real and (self.generator_real or request.stream != "generator")

    def _index(self, request: Request) -> Tensor:
        """Return the indices [B] of the samples of a micro-batch in its stream."""
        start = request.first + (request.micro * self.world + self.rank) * self.size
        return torch.arange(start, start + self.size)

    def _samples(self, request: Request, positions: Tensor) -> Tensor:
        """Return the real samples of a micro-batch on the host, float32 [B, C, *spatial]."""
        begin = time.perf_counter()
        if self.workers and self.dataset.on_demand and self._ahead is None:
            assert self.dataset.read is not None, "data that are decoded can be read"
            self._ahead = ReadAhead(self.dataset.read, self._positions, self._read_later, self.workers)
        samples = self.dataset.images(positions) if self._ahead is None else to_floats(self._ahead.take(request))
        self.seconds += time.perf_counter() - begin
        return samples

    def _read_later(self) -> Iterator[Request]:
        """Yield the upcoming requests that have real samples."""
        return filter(self.reads, self.upcoming())

    def _turn(self, request: Request) -> Turn:
        """Return the samples that the global batch of a request is drawn from."""
        number = request.first // self.sizes.batch_size
        return self.dataset.turn(number) if isinstance(self.dataset, Buckets) else Turn(self.dataset, 0, number)

    def _positions(self, request: Request) -> Tensor:
        """Return the positions [B] of the samples of a micro-batch: of the real ones in their order, or drawn ones."""
        index, turn = self._index(request), self._turn(request)
        if not self.real:
            random = Random.at(self.seed, index, self.device).stream(request.stream)
            return turn.start + drawn_positions(turn.data, random)
        others = request.first // self.sizes.batch_size - turn.number  # batches of other buckets until here
        return turn.start + turn.data.order(self.seed, index - others * self.sizes.batch_size)

    def _pairs(self, first: int, micro: int) -> Pairs:
        """Return the ODE pairs of one micro-batch."""
        assert self.pairs is not None
        begin = first // self.sizes.batch_size * self.sizes.pairs + (micro * self.world + self.rank) * self.pairs_size
        index = torch.arange(begin, begin + self.pairs_size)
        rows = self.pairs.rows(order(self.pairs.count, self.seed, index))
        cond = condition_of(rows).to(self.device, self.dtype)
        return Pairs(self._to_device(rows["noise"]), self._to_device(rows["target"]), cond)

    def _to_device(self, value: Tensor) -> Tensor:
        return to_device(value, self.device, self.dtype)


def inputs(dataset: Dataset, random: Random, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Condition]:
    """Return the inputs of a generator: noise, and conditions as frequent as in the data.

    Args:
        dataset: The data as the teacher takes them.
        random: The random numbers of B samples, whose keys are on the host.
        dtype: The dtype of the noise and of the tensors of the condition.

    Returns:
        Unit normal noise [B, C, *spatial], and a condition [B, ...].
    """
    noise = unit_noise(dataset.shape, random, dtype)
    return noise, condition_at(dataset, drawn_positions(dataset, random)).to(noise.device, dtype)


def drawn_positions(dataset: Dataset, random: Random) -> Tensor:
    """Return the positions [B] of the conditions of B samples, on the device of the keys: the host."""
    return positions_at(dataset, random.stream("label").uniform())


def positions_at(dataset: Dataset, uniform: Tensor) -> Tensor:
    """Return the positions [B] of items that are drawn by uniform numbers [B] in [0, 1), in the shares of a mixture."""
    if not isinstance(dataset, Mixed):
        return (uniform * dataset.count).long()
    first, share = dataset.first, float(dataset.share)
    return chosen(
        uniform < share,
        lambda part: positions_at(first, part),
        lambda part: first.count + positions_at(dataset.second, part),
        uniform / share,
        (uniform - share) / (1 - share),
    )


def texts_at(dataset: Dataset, positions: Tensor) -> tuple[str, ...]:
    """Return the prompts of the samples at `positions` [B], on the host, as they are written."""
    assert dataset.prompts is not None, "open_run refuses an objective that reads prompts where there are none"
    return tuple(dataset.prompts[position] for position in positions.tolist())


def condition_at(dataset: Dataset, positions: Tensor) -> Condition:
    """Return the conditions [B, ...] of the samples at `positions` [B], both on the host."""
    if dataset.prompts is not None:
        assert dataset.embed is not None, "prompts are no condition before they are encoded"
        return Condition(dataset.embed(positions))
    return Condition() if dataset.labels is None else Condition(labels=dataset.labels[positions])


def preview_conditions(dataset: Dataset, columns: Tensor) -> Condition:
    """Return a condition for each column number [B]: the classes in turn, or the first prompts in turn."""
    if dataset.prompts is not None:
        return condition_at(dataset, (columns % dataset.count).cpu()).to(columns.device, torch.float32)
    return labels_in_turn(dataset.classes, columns)


def labels_in_turn(classes: int, columns: Tensor) -> Condition:
    """Return a label for each column number [B], the classes in turn, or an empty condition without classes."""
    return Condition(labels=columns % classes) if classes else Condition()


def unit_noise(shape: tuple[int, ...], random: Random, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the noise of a generator: unit normal, [B, *shape]."""
    return random.stream("latent").normal(*shape, dtype=dtype)
