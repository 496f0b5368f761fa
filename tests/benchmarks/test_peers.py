"""A peer's loop beside ours: both build, take turns and train. How long they take is not tested."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import peers
from distill.errors import UserError

STAND_IN = f"{Path(__file__).parent / 'plain_sid.py'}:build"
TINY = peers.Setting(batch=2, channels=8, size=8)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_both_loops_take_turns(precision: str) -> None:
    found = peers.compare(STAND_IN, TINY._replace(precision=precision), turns=2)
    assert set(found) == {"ours", "peer", "ratio"}
    assert all(spread.low <= spread.median <= spread.high for kinds in found.values() for spread in kinds.values())
    assert found["ours"]["wall"].low > 0 and found["peer"]["wall"].low > 0


def test_each_loop_is_called_once_a_turn() -> None:
    calls: list[str] = []
    peers.alternate({name: lambda name=name: calls.append(name) for name in "ab"}, 3, torch.device("cpu"))  # type: ignore[misc]
    assert calls == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_peaks_are_of_processes_of_their_own() -> None:
    assert peers.peak_in_a_process("peer", STAND_IN, TINY) > 0


@pytest.mark.parametrize("place", ["none.py:build", "build", f"{Path(__file__)}:build"])
def test_a_mistaken_place_is_told(place: str) -> None:
    with pytest.raises(UserError, match="peer: "):
        peers.load_build(place)
