"""The operators that a round launches outside its networks: their number is known, and does not grow with the batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import launches
from benchmarks.launches import Plain, launches_of_round
from distill import EDM, Denoiser
from distill.teachers import OwnNet, save_denoiser
from tests.tiny import DISTILLATIONS, build_session, distillation, recipe
from trainers.engine.step import advance

pytestmark = pytest.mark.usefixtures("trusted_code")

LONG: dict[str, Any] = {"images": 10**6, "log_every": 10**6}  # so that no round leads to a log point


@pytest.fixture
def on_meta() -> Iterator[None]:
    """Train on the meta device, which has no values: no optimizer steps."""
    with launches.on_meta():
        yield


@pytest.mark.parametrize(
    ("objective", "most", "compiled"),
    [
        ({"name": "sid"}, 257, 55),
        ({"name": "diff_instruct"}, 227, 46),
        ({"name": "dmd2", "tap": "middle"}, 390, 78),
    ],
    ids=["sid", "diff_instruct", "dmd2"],
)
def test_launches_outside_the_networks(
    objective: dict[str, Any], most: int, compiled: int, on_meta: None, tmp_path: Path
) -> None:
    name = f"{Plain.__module__}:Plain"
    save_denoiser(Denoiser(OwnNet(name, {}, (1, 8, 8), 10, None), EDM(), "edm"), tmp_path / "plain")
    counts = []
    for batch_size in (8, 64):
        session = build_session(recipe(tmp_path / "plain", objective=objective, batch_size=batch_size, **LONG))
        counts += [launches_of_round(session, fuses).total() for fuses in (False, True)]
    assert counts[:2] == counts[2:] == [most, compiled], counts


@pytest.mark.parametrize("objective", DISTILLATIONS)
def test_the_host_reads_nothing(objective: str, on_meta: None, teachers: Path) -> None:
    """A device without values: a round that reads one on the host fails."""
    session = build_session(distillation(objective, teachers, **LONG))
    for _ in range(3):
        advance(session)
    with pytest.raises(RuntimeError, match="meta"):
        session.state.meter.read(session.accelerator)
