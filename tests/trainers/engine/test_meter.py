"""Means are of all that was added, wherever; a meter comes back from its rows."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from trainers.engine.meter import Meter

CPU = torch.device("cpu")


class PlannedAccelerator:
    """An accelerator of several ranks whose other ranks' tensors are known."""

    def __init__(self, *others: Tensor) -> None:
        self.others = others

    def gather(self, tensor: Tensor) -> Tensor:
        return torch.cat([tensor, *self.others])


def world(*others: Tensor) -> Accelerator:
    return cast(Accelerator, PlannedAccelerator(*others))


def filled(**values: list[float]) -> Meter:
    meter = Meter()
    for name, numbers in values.items():
        meter.add(name, torch.tensor(numbers))
    return meter


def test_micro_batches_and_updates_merge() -> None:
    meter = filled(loss=[1.0, 2.0, 6.0], norm=[3.0])
    meter.add("loss", torch.tensor([11.0]))
    meter.add("norm", torch.tensor(5.0))  # a scalar counts once
    assert meter.read(world()) == {"loss": 5.0, "norm": 4.0}
    assert meter.read(world()) == {}  # it began anew


def test_float32_values_are_summed_in_float64() -> None:
    meter = Meter()
    for _ in range(10):
        meter.add("x", torch.tensor([1e8, 1.0], dtype=torch.float32))
    assert meter.totals["x"].tolist() == [[10 * (1e8 + 1), 20.0]]
    meter.add("y", torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True))
    assert meter.totals["y"].dtype == torch.float64 and not meter.totals["y"].requires_grad


def test_ranks_merge_by_their_counts() -> None:
    other = torch.tensor([[[10.0, 5.0], [1.0, 1.0]]])  # (a: sum 10 of 5, b: 1 of 1) on the second rank
    assert filled(b=[3.0, 5.0], a=[2.0]).read(world(other)) == {"a": 12 / 6, "b": 9 / 3}


def test_a_value_that_is_not_finite_shows() -> None:
    assert math.isnan(filled(x=[1.0, math.nan]).read(world())["x"])


def test_rows_are_the_state_of_every_rank() -> None:
    other = torch.tensor([[[10.0, 5.0]]])
    rows = filled(x=[1.0, 2.0]).rows(world(other))
    assert {name: pairs.tolist() for name, pairs in rows.items()} == {"x": [[[3.0, 2.0]], [[10.0, 5.0]]]}
    for rank, pair in enumerate(([3.0, 2.0], [10.0, 5.0])):
        meter = Meter()
        meter.load(rows, rank, 2, CPU)
        assert meter.totals["x"].tolist() == [pair]


@pytest.mark.parametrize("ranks", [1, 3])
def test_another_number_of_ranks_keeps_the_mean(ranks: int) -> None:
    rows = {"x": torch.tensor([[[3.0, 2.0]], [[10.0, 5.0]]], dtype=torch.float64)}
    meters = [Meter() for _ in range(ranks)]
    for rank, meter in enumerate(meters):
        meter.load(rows, rank, ranks, CPU)
        meter.add("x", torch.tensor([1.0]))
    others = [meter.totals["x"][None] for meter in meters[1:]]
    assert meters[0].read(world(*others)) == {"x": pytest.approx((13 + ranks) / (7 + ranks))}


def test_the_order_of_names_does_not_depend_on_where_they_came_from() -> None:
    """A meter that a checkpoint gave back has its names in the file's order."""
    meter = Meter()
    meter.load({"a": torch.ones(1, 1, 2), "b": torch.ones(1, 6, 2)}, 0, 1, CPU)
    meter.add("c", torch.ones(1))
    fresh: dict[str, Any] = filled(c=[1.0], b=[1.0], a=[1.0]).read(world())
    assert [name for name in meter.read(world()) if "/" not in name] == list(fresh) == ["a", "b", "c"]


def test_bins_of_the_noise_to_signal_ratio() -> None:
    """Half decades, the ends open; an empty bin is left out, a NaN stays in its own."""
    meter = Meter()
    nsr = torch.tensor([1e-9, 0.099, 0.101, 0.5, 2.0, 4.0, 1e9])
    meter.add("gap", torch.arange(7.0), nsr)
    meter.add("gap", torch.tensor([math.nan]), torch.tensor([5.0]))
    bins = {"nsr<0.1": 0.5, "nsr 0.1-0.32": 2.0, "nsr 0.32-1": 3.0, "nsr 1-3.2": 4.0, "nsr>10": 6.0}
    read = meter.read(world())
    assert math.isnan(read.pop("gap")) and math.isnan(read.pop("gap/nsr 3.2-10"))
    assert read == {f"gap/{name}": mean for name, mean in bins.items()}
    meter.note("gap", torch.tensor([2.0, 4.0]), torch.tensor([0.2, 0.2]))
    assert meter.read(world()) == {"health/gap": 3.0, "health/gap/nsr 0.1-0.32": 3.0}


def test_an_empty_meter_has_no_rows() -> None:
    assert Meter().rows(world()) == {} and Meter().read(world()) == {}
