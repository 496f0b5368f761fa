"""`distill bench`: medians against a clock that the test moves, and the table."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

import trainers
from launch.commands.bench import speed_lines
from tests.launch.conftest import Command
from tests.launch.test_mistakes import mistake
from trainers.runs.bench import Speed, measured, median_seconds


def test_the_table(distill: Command, student: Path) -> None:
    """The student takes one evaluation and the teacher its sampler's, so that it is faster by about as much."""
    done = distill("bench", student, "--batch", 4, "--seconds", 0.01, "sampler.evaluations=9")
    assert done.code == 0, done.err
    rows = {line.split()[0]: line.split()[1:] for line in done.out.splitlines()[1:4]}
    assert [rows[name][0] for name in ("student", "teacher", "ratio")] == ["1", "9", "9.0"]
    assert float(rows["ratio"][1]) > 3 and float(rows["ratio"][2]) > 3 and rows["ratio"][3] == "-"
    assert float(rows["ratio"][1]) == pytest.approx(float(rows["teacher"][1]) / float(rows["student"][1]), rel=0.05)
    assert done.out.splitlines()[-1].startswith("on cpu, without the decoder of latents; the memory ")


def test_ratios_are_in_favour_of_the_student() -> None:
    lines = speed_lines(Speed(1, 0.01, 50.0, 2.0), Speed(35, 0.4, 2.0, 5.0), 64, "cuda")
    assert [line.split() for line in lines[1:4]] == [
        ["student", "1", "10.00", "50.0", "2.00"],
        ["teacher", "35", "400.00", "2.0", "5.00"],
        ["ratio", "35.0", "40.0", "25.0", "2.50"],
    ]
    assert len({len(line) for line in lines[:4]}) == 1 and lines[4] == "on cuda, without the decoder of latents"


def test_medians_leave_out_the_first_call(monkeypatch: pytest.MonkeyPatch, student: Path) -> None:
    """The first call takes 100 seconds, and the others 1, 2, 3 and so on: 4 of them are the first above 7 seconds."""
    clock, taken = [0.0], iter([100.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def call() -> None:
        clock[0] += next(taken)

    assert median_seconds(call, torch.device("cpu"), 7) == 2.5
    assert next(taken) == 5.0  # no more calls than were asked for

    def sampler(z: torch.Tensor, cond: object) -> torch.Tensor:
        clock[0] += 0.5 + 0.25 * len(z)
        return z

    trained = trainers.load(student)
    speed = measured(trained, sampler, trained.model, 7, 6, 0.1)
    assert speed == Speed(7, 0.75, 3.0, None)


def test_a_teacher_has_no_student(distill: Command, teacher_run: Path) -> None:
    line = f"bench: '{teacher_run}' has no student with a teacher; name the folder of a distillation"
    assert mistake(distill("bench", teacher_run)) == line
