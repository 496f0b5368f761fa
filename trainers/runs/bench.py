"""The speed and the memory of a student and of its teacher, side by side."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from distill.conditions import Condition
from distill.errors import UserError
from distill.random import Random
from trainers.data.batches import preview_conditions, unit_noise
from trainers.engine.memory import GIB
from trainers.engine.sampler import Sampler
from trainers.io.images import denoiser_of
from trainers.runs.draw import Drawable, drawn_labels

_LEAST = 3  # measured calls of a sampler


@dataclass(frozen=True)
class Speed:
    """The speed and the memory of a model that is sampled, without the decoder of latents.

    Attributes:
        evaluations: The network evaluations of a sample, without those of guidance.
        latency: The seconds of a batch of one sample, the median.
        throughput: The samples of a second at the larger batch, by the median.
        memory: The peak at the larger batch with the weights of the model, in GiB. None on a CPU, where the memory of
            one model cannot be told from that of the process.
    """

    evaluations: int
    latency: float
    throughput: float
    memory: float | None


def bench_run(trained: Drawable, batch: int, seconds: float) -> tuple[Speed, Speed]:
    """Return the speed of the student of a run, and that of its teacher by the run's sampler.

    Args:
        trained: The trained model of a run.
        batch: The larger batch.
        seconds: The time for which each of the four measurements repeats its calls, at least.

    Raises:
        UserError: The run trains a teacher.
    """
    if trained.teacher is None or trained.teacher_sampler is None:
        raise UserError(f"bench: '{trained.folder}' has no student with a teacher; name the folder of a distillation")
    both = (trained.sampler, trained.model, 1), (trained.teacher_sampler, trained.teacher, trained.run.sampler.calls)
    student, teacher = (measured(trained, *one, batch, seconds) for one in both)
    return student, teacher


def measured(
    trained: Drawable, sampler: Sampler, model: nn.Module, evaluations: int, batch: int, seconds: float
) -> Speed:
    """Return the speed of a sampler.

    Args:
        trained: The trained model of a run, whose conditions the samples get.
        sampler: The sampler.
        model: The network that it samples.
        evaluations: The network evaluations of a sample.
        batch: The larger batch.
        seconds: The time for which both measurements repeat their calls, at least.
    """
    device = trained.device

    def call(count: int) -> Callable[[], object]:
        index = torch.arange(count, device=device)
        noise = unit_noise(denoiser_of(trained.model).network.shape, Random.at(0, index).stream("sample"))
        cond = conditions(trained, count)
        return lambda: sampler(noise, cond)

    latency = median_seconds(call(1), device, seconds)
    many, cuda = call(batch), device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if cuda else 0
    throughput = batch / median_seconds(many, device, seconds)
    if not cuda:
        return Speed(evaluations, latency, throughput, None)
    weights = sum(one.numel() * one.element_size() for one in (*model.parameters(), *model.buffers()))
    peak = torch.cuda.max_memory_allocated(device) - before + weights  # `before` has the weights of both models
    return Speed(evaluations, latency, throughput, peak / GIB)


def conditions(trained: Drawable, count: int) -> Condition:
    """Return the conditions of samples: prompts of the run's data, or the classes in turn."""
    if denoiser_of(trained.model).network.text_encoder is not None:
        return preview_conditions(trained.dataset, torch.arange(count, device=trained.device))
    return drawn_labels(trained, count)


def median_seconds(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the median of the seconds of a call, after one call that is not counted.

    Args:
        call: The call, for whose end on the device this waits.
        device: The device.
        seconds: The time for which calls are repeated, at least, and at least _LEAST times.
    """
    times: list[float] = []
    for number in range(1_000_000):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number:  # the first one loads kernels
            times.append(time.perf_counter() - started)
        if len(times) >= _LEAST and sum(times) >= seconds:
            break
    return statistics.median(times)
