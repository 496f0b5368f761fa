"""Sessions of any recipe around a teacher with random weights, and clocks that wait for the device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from distill.denoiser import Denoiser
from trainers.data import Dataset
from trainers.engine.session import Session
from trainers.engine.world import choose_kernels
from trainers.loop import build_session
from trainers.recipe.load import build_experiment
from trainers.runs.open import Objects, open_run

REAL_IMAGES = 256
FOREVER = 10**9
"""The images of a run that never comes to a log point."""


class Spread(NamedTuple):
    """The median of measurements, with their quartiles.

    Attributes:
        low: The lower quartile.
        median: The median.
        high: The upper quartile.
    """

    low: float
    median: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float]) -> Spread:
        """Return the spread of values. One value is all three."""
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


def random_images(shape: tuple[int, ...], classes: int) -> Dataset:
    """Return a data set of random images in [-1, 1] with labels, or without where there are no classes."""
    images = torch.rand(REAL_IMAGES, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = torch.arange(max(REAL_IMAGES, classes)) % classes if classes else None
    return Dataset("random", REAL_IMAGES, shape, labels, lambda positions: images[positions])


def session_of(teacher: Denoiser, accelerator: Accelerator, **recipe: Any) -> Session:
    """Return the session of a run that distils `teacher`, whose weights may be random.

    Args:
        teacher: The teacher, which takes labels or nothing.
        accelerator: The device.
        recipe: The keys of the recipe. Those of every run have defaults, under which no round comes to a log point. The
            data are random images with random labels.
    """
    network = teacher.network
    data = {"name": "data_free", "shape": list(network.shape), "classes": network.classes}
    common = {"name": "benchmark", "teacher": "random", "data": data, "images": FOREVER, "log_every": FOREVER}
    run = build_experiment({**common, **recipe}, "benchmark")
    if accelerator.device.type == "cuda":
        choose_kernels(run)
    given = Objects(teacher=teacher, data=random_images(network.shape, network.classes))
    return build_session(open_run(run, 1, objects=given), accelerator)


def wait(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(function: Callable[[], Any], device: torch.device) -> float:
    """Return the wall seconds that a function takes, the work that it leaves on the device included."""
    wait(device)
    start = time.perf_counter()
    function()
    wait(device)
    return time.perf_counter() - start
