"""A plan says which messages no computation can hide."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from torch import Tensor, nn

from distill import EDM, Denoiser
from distill.teachers import OwnNet, save_denoiser
from tests.tiny import experiment, recipe
from trainers.plan import trace
from trainers.plan.ledger import ALL, Overlap, Traffic
from trainers.plan.report import Speeds, exposed_seconds, plan_lines
from trainers.recipe.run import Run, Sharding

SPEEDS = Speeds(bfloat16=2e6, tf32=4e6, float32=8e6, within=1e3, between=100.0)


class Layers(nn.Module):
    """Three products of 64 x 64, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(3)))

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Any:
        return self.layers(x.flatten(1)).view_as(x)


@pytest.fixture
def run(tmp_path: Path, trusted_code: None) -> Run:
    save_denoiser(Denoiser(OwnNet(f"{__name__}:Layers", {}, (1, 8, 8), 10), EDM(), "edm"), tmp_path)
    return cast(Run, experiment(recipe(tmp_path, batch_size=16, fake_updates=2)))


def test_what_follows_the_first_bucket(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each weight fills a bucket. After the gradient of the last layer come two products of the second and one of the
    first, which has no gradient to its input. Samples of earlier micro-batches hide nothing: nothing is sent in them.
    """
    monkeypatch.setattr(trace, "BUCKET", 1)
    monkeypatch.setattr(trace, "FIRST_BUCKET", 1)
    for micro_batches in (1, 2):
        found = trace.plan(replace(run, micro_batches=micro_batches), 2)
        product = 2 * (16 // 2 // micro_batches) * 64 * 64
        assert found.overlaps["fake"] == [Overlap(3 * product, "allreduce_", ALL, 4 * 64 * 64)] * 2
        assert len(found.overlaps["generator"]) == 1


def test_a_network_in_one_bucket_hides_nothing(run: Run) -> None:
    found = trace.plan(run, 2)
    assert found.overlaps["fake"] == [Overlap(0, "allreduce_", ALL, 3 * 4 * 64 * 64)] * 2
    last = plan_lines(run, found, 1)[-2:]
    assert [line.split() for line in last] == [
        ["fake", "0.00", "of", "0.00", "ms"],
        ["generator", "0.00", "of", "0.00", "ms"],
    ]


def test_sharded_weights_are_gathered_beside_the_forward_pass(run: Run) -> None:
    found = trace.plan(replace(run, sharding=Sharding()), 2)
    (one, other), whole = found.overlaps["fake"], trace.plan(run, 2).overlaps["fake"][0]
    assert one == other and one.flops > whole.flops and one.operation != "allgather_base_"


def test_the_exposed_seconds(run: Run) -> None:
    """Two updates send 8,000 bytes each to a partner: 8 s within a machine, and 80 s to another one."""
    found = trace.Plan(2, {}, {}, {("fake", "allreduce_", ALL): Traffic(2, 16_000)}, {})
    updates = [Overlap(12_000_000, "allreduce_", ALL, 1000), Overlap(40_000_000, "allreduce_", ALL, 1000)]
    found = replace(found, overlaps={"fake": updates})
    half = 4e6  # of float32's operations a second
    assert exposed_seconds(run, found, "fake", 1, SPEEDS) == pytest.approx((16, (8 - 12e6 / half) + 1))
    assert exposed_seconds(run, found, "fake", 2, SPEEDS) == pytest.approx((160, (80 - 3) + (80 - 10)))
    fast = replace(run, precision="bfloat16")
    assert exposed_seconds(fast, found, "fake", 1, SPEEDS) == pytest.approx((16, 1 + 1))
    assert exposed_seconds(replace(run, tf32=True), found, "fake", 1, SPEEDS) == pytest.approx((16, (8 - 6) + 1))
