"""The counts of the table of steps, and that every row trains. How long a row takes is not tested."""

from __future__ import annotations

import pytest
from accelerate import Accelerator

from benchmarks import around, step

SHARE = 0.5  # of a forward up to the tap
COUNTS = {
    "sid": 11,
    "sid, reuse_samples": 10,
    "sida": 12.5,
    "diff_instruct": 9,
    "dmd2": 11.5,
    "dmd2, K = 5": 33.5,
    "dmd2, K = 5, reuse_samples": 32.5,
    "dmd2, K = 5, reuse_samples: all": 28.5,
    "score_mismatching": 12,
    "realuid": 14,
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_forwards_that_a_round_needs(name: str) -> None:
    assert step.CASES[name].needs(SHARE) == COUNTS[name]


@pytest.mark.parametrize("name", ["sida", "fgm"])
def test_a_row_is_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {**step.NETWORK, "block_out_channels": [8, 8], "norm_num_groups": 4, "layers_per_block": 1}
    monkeypatch.setattr(step, "NETWORK", small)
    found = step.measure(step.CASES[name], Accelerator(cpu=True), 1, batch=2, precision="bfloat16")
    assert found.ratio > 0 and 0 < found.extras < 1
    assert (found.needs == 11) == (name == "fgm")


def test_time_around_networks() -> None:
    session = around.plain_session("sid", 2, False, Accelerator(cpu=True))
    assert around.milliseconds_outside(session, 1).median > 0
