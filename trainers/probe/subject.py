"""The teacher under the probe, the samples that it should make, and the time that the probe may take."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from distill.conditions import Condition
from distill.denoiser import Denoiser, GuidableDenoiser
from distill.generator import Generator
from distill.random import Random
from distill.sampling import sample
from trainers.data import Dataset
from trainers.data.batches import condition_at, inputs
from trainers.recipe.run import Run

SPEED_CALLS = 20
"""The forwards of which the fastest is the network's speed."""
CHUNK = 64
"""The samples of one forward."""
SAMPLED_IN = 35
"""The evaluations of a sample of the teacher that stands for data, as many as in an evaluation."""


@dataclass(frozen=True)
class Budget:
    """The time of the probe, in evaluations of the network.

    Attributes:
        seconds: The seconds of the whole probe.
        forward: The seconds of one evaluation of one sample, without a graph.
    """

    seconds: float
    forward: float

    def samples(self, share: float, evaluations: float, most: int, least: int = 8) -> int:
        """Return a number of samples that fit into a part of the time, or 0 if fewer than `least` do.

        Args:
            share: The part of the time, in (0, 1).
            evaluations: The evaluations that each sample takes. One with its backward pass counts as three.
            most: The largest number that is of use.
            least: The smallest number that is of use.
        """
        count = int(share * self.seconds / (self.forward * evaluations))
        return min(count, most) if count >= least else 0


@dataclass(frozen=True)
class Reference:
    """Samples [N, C, *spatial] that the teacher should make, with their conditions [N, ...].

    `are_data` is False for samples of the teacher itself, where there are no images or the teacher is guided.
    """

    samples: Tensor
    cond: Condition
    are_data: bool


@dataclass(frozen=True)
class Subject:
    """The teacher under the probe.

    Attributes:
        run: The recipe so far: the teacher, the data, and the objective that is asked for.
        teacher: The teacher on its device, frozen.
        target: The denoiser whose samples the student should make: the teacher, guided where the recipe guides it.
        dataset: The data as the teacher takes them.
        device: The device.
        seconds: The seconds that the probe may take.
    """

    run: Run
    teacher: Denoiser
    target: GuidableDenoiser
    dataset: Dataset
    device: torch.device
    seconds: float

    @cached_property
    def budget(self) -> Budget:
        """The time, with the speed of the network measured on this machine."""
        noise, cond, _ = self.inputs("speed", 0, 16)
        t = self.time(1.0, len(noise))
        took = []
        with torch.no_grad():
            for _ in range(SPEED_CALLS):  # the first sets up kernels, and other work on the machine slows some
                start = time.perf_counter()
                self.teacher(noise, t, cond)
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
                took.append(time.perf_counter() - start)
        return Budget(self.seconds, min(took) / len(noise))

    def inputs(self, purpose: str, first: int, count: int) -> tuple[Tensor, Condition, Random]:
        """Return unit noise [N, C, *spatial], conditions [N, ...] and random numbers, from a stream for one purpose."""
        index = torch.arange(first, first + count)
        random = Random.at(self.run.seed, index, self.device).stream(f"probe {purpose}")
        noise, cond = inputs(self.dataset, random)
        return noise, cond, random

    def time(self, nsr: float, count: int) -> Tensor:
        """Return the time of a noise-to-signal ratio on the teacher's path, float64 [count]."""
        return self.teacher.path.time(torch.full((count,), nsr, dtype=torch.float64))

    def levels(self, levels: tuple[float, ...]) -> list[float]:
        """Return the noise-to-signal ratios that the teacher's path has nearest to `levels`, each once."""
        path = self.teacher.path
        found = path.nsr(path.time(torch.tensor(levels, dtype=torch.float64)))
        return [float(one) for one in found.unique() if 0 < one < float("inf")]

    def generator(self, nsr: float) -> Generator:
        """Return the untrained student that enters at a noise-to-signal ratio. It is the teacher itself."""
        return Generator(self.teacher, float(self.time(nsr, 1)))

    @torch.no_grad()
    def reference(self, count: int) -> Reference:
        """Return images of the data, or samples of the teacher if there are none or the teacher is guided."""
        if self.dataset.read is not None and self.target is self.teacher:
            positions = self.dataset.order(self.run.seed, torch.arange(min(count, self.dataset.count)))
            cond = condition_at(self.dataset, positions).to(self.device, torch.float32)
            return Reference(self.dataset.images(positions).to(self.device), cond, True)
        noise, cond, _ = self.inputs("reference", 0, count)
        parts = [sample(self.target, noise[s], cond.rows(s), SAMPLED_IN) for s in slices(count)]
        return Reference(torch.cat(parts), cond, False)


def slices(count: int, size: int = CHUNK) -> Iterator[slice]:
    """Yield slices of at most `size` that make up `count`."""
    return (slice(first, min(first + size, count)) for first in range(0, count, size))
