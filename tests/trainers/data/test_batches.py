"""A sample is a function of its stream and its index, however batches are cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distill.random import Random
from tests.tiny import experiment, recipe
from trainers.data import Dataset, Digits
from trainers.data.batches import Batches, BatchSizes, inputs
from trainers.data.dataset import _permutation

CPU = torch.device("cpu")


def numbered(count: int, labels: Tensor | None = None) -> Dataset:
    """1x2x2 images that show their position."""
    return Dataset("numbered", count, (1, 2, 2), labels, lambda at: at.float()[:, None, None, None].expand(-1, 1, 2, 2))


def batches(dataset: Dataset, real: bool = True, rank: int = 0, world: int = 1, **changes: Any) -> Batches:
    run = experiment(recipe("unused", batch_size=24, images=240, **changes))
    sizes = BatchSizes(run.batch_size, run.micro_batches)
    return Batches(dataset, sizes, run.seed, run.dtype, real, rank, world, CPU)


def gathered(dataset: Dataset, world: int, micro: int, real: bool, **changes: Any) -> dict[str, Tensor]:
    """The global batch from sample 48 of the stream, put together from its parts."""
    parts = []
    for index in range(micro):
        for rank in range(world):
            own = batches(dataset, real, rank, world, micro_batches=micro, **changes)
            parts.append(own.micro("generator", 48, index))
            assert len(parts[-1].noise) == 24 // (world * micro)
    fields: dict[str, list[Any]] = {"noise": [p.noise for p in parts], "keys": [p.random.keys for p in parts]}
    if dataset.labels is not None:
        fields["cond"] = [p.cond.labels for p in parts]
    if real:
        fields["real"] = [p.real for p in parts]
    return {name: torch.cat(tensors) for name, tensors in fields.items()}


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize(("world", "micro"), [(1, 2), (2, 1), (3, 2), (4, 3), (24, 1), (1, 24)])
def test_any_partition_draws_the_same_samples(world: int, micro: int, real: bool, precision: str) -> None:
    dataset = Digits().load()
    whole = gathered(dataset, 1, 1, real, precision=precision)
    parts = gathered(dataset, world, micro, real, precision=precision)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    dtype = torch.float64 if precision == "float64" else torch.float32
    assert {whole[name].dtype for name in whole} == {dtype, torch.int64}
    assert len(whole["keys"].unique()) == 24


def test_streams_seeds_and_places_differ() -> None:
    dataset = numbered(100)
    first = batches(dataset).micro("generator", 0, 0)
    others = [batches(dataset).micro(stream, start, 0) for stream, start in (("fake", 0), ("generator", 24))]
    others.append(batches(dataset, seed=1).micro("generator", 0, 0))
    for other in others:
        assert not torch.isin(first.random.keys, other.random.keys).any()
        assert not torch.equal(first.noise, other.noise)
    again = batches(dataset).micro("generator", 8, 0)
    assert torch.equal(again.noise[:16], first.noise[8:])  # sample 8 is sample 8


def test_diffusion_noise_is_not_the_generators_input() -> None:
    batch = batches(numbered(100)).micro("generator", 0, 0)
    for name in ("noise", "time", "fake", "generator", "label"):
        other = batch.random.stream(name).normal(1, 2, 2)
        assert abs(float((batch.noise * other).mean())) < 0.4 and not torch.equal(batch.noise, other)


def test_labels_come_by_their_frequency() -> None:
    labels = torch.tensor([0] * 70 + [2] * 25 + [1] * 5)
    noise, cond = inputs(numbered(100, labels), batches(numbered(1), real=False).micro("x", 0, 0).random)
    assert cond.labels is not None and noise.shape == (24, 1, 2, 2)
    _, cond = inputs(numbered(100, labels), Random.at(0, torch.arange(40_000)))
    assert cond.labels is not None
    shares = torch.bincount(cond.labels) / 40_000
    assert shares.tolist() == pytest.approx([0.70, 0.05, 0.25], abs=0.01)  # three standard deviations are 0.007


def test_without_labels_there_is_no_condition() -> None:
    batch = batches(numbered(100), real=False).micro("generator", 0, 0)
    assert batch.cond == {} and batch.real is None


def test_real_images_bring_their_own_labels() -> None:
    dataset = numbered(100, torch.arange(100) % 10)
    batch = batches(dataset).micro("teacher", 0, 0)
    assert batch.real is not None and batch.cond.labels is not None
    positions = batch.real[:, 0, 0, 0].long()
    assert torch.equal(batch.cond.labels, positions % 10)


def test_every_epoch_is_its_own_permutation() -> None:
    dataset, count = numbered(37), 37
    positions = dataset.order(0, torch.arange(4 * count)).reshape(4, count)
    assert all(torch.equal(epoch.sort().values, torch.arange(count)) for epoch in positions)
    assert len({tuple(epoch.tolist()) for epoch in positions}) == 4
    assert not torch.equal(dataset.order(1, torch.arange(count)), positions[0])
    assert len(torch.unique(positions - positions[0])) > 10  # no shift of each other


@pytest.mark.parametrize("size", [1, 5, 24, 100, 1000])
def test_the_order_does_not_depend_on_the_batch(size: int) -> None:
    """Batches across the border of epochs included, some of them longer than an epoch."""
    dataset = numbered(37)
    whole = dataset.order(3, torch.arange(1000))
    _permutation.cache_clear()
    parts = [dataset.order(3, torch.arange(1000)[start : start + size]) for start in range(0, 1000, size)]
    assert torch.equal(torch.cat(parts), whole)
    shuffled = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dataset.order(3, shuffled), whole[shuffled])


def test_training_reads_every_image_once_an_epoch() -> None:
    own = batches(numbered(72))
    seen = [own.micro("teacher", first, 0).real for first in range(0, 72, 24)]
    values = torch.cat([real[:, 0, 0, 0] for real in seen if real is not None])
    assert torch.equal(values.sort().values, torch.arange(72.0))
