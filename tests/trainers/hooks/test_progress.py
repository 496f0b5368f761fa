"""The line of progress: speed, distance, losses, memory, and the time to the next evaluation and the end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tiny import fit_run, recipe
from trainers.hooks import evaluate
from trainers.hooks.log import duration

TIME = r"\d+:\d\d:\d\d"
LOSSES = r"fake/denoising \S+  generator/sid \S+"


def test_a_line_says_where_a_run_is(
    teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = iter([3.25, 1.5])
    monkeypatch.setattr(evaluate, "evaluate", lambda *_: {"frechet": next(found), "protocol": "p", "samples": 33})
    settings = recipe(teachers / "edm", images=32, log_every=8, evaluation={"every": 16, "samples": 33})
    fit_run(settings, tmp_path / "run")
    lines = [line for line in capsys.readouterr().err.splitlines() if " of 32 images, " in line]
    assert len(lines) == 4
    plain, measured = rf"\d+ images/s, {LOSSES}", rf"\d+ images/s, frechet 3.25, {LOSSES}"
    memory, ends = r"\d+\.\d\d GiB", rf"{TIME} left"
    wanted = (
        rf"tiny: 8 of 32 images, {plain}, {memory}, evaluation in {TIME}, {ends}",
        rf"tiny: 16 of 32 images, {plain}, {memory}, evaluation in {TIME}, {ends}",  # the log comes first
        rf"tiny: 24 of 32 images, {measured}, {memory}, evaluation in {TIME}, {ends}",
        rf"tiny: 32 of 32 images, {measured}, {memory}, {ends}",
    )
    for line, pattern in zip(lines, wanted, strict=True):
        assert re.fullmatch(pattern, line), line


def test_times_are_read_at_a_glance() -> None:
    assert [duration(one) for one in (0.4, 65, 3_900, 90_000, 1e300)] == [
        "0:00:00",
        "0:01:05",
        "1:05:00",
        "1 day, 1:00:00",
        "1157 days, 9:46:40",
    ]
