"""The counts of operations and of memory, on tiny teachers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from accelerate import Accelerator

from benchmarks.gpu_sections import published
from benchmarks.memory import measured_peak
from benchmarks.roofline import paper_recipes, work_of
from distill.objectives.diff_instruct import DiffInstruct
from distill.objectives.sid import SiD
from trainers.plan.trace import plan


def test_operations_are_those_of_the_passes(tmp_path: Path) -> None:
    """SiD takes 11 forwards and Diff-Instruct 9, but for first layers without a backward to their input."""
    sid, diff_instruct = (
        work_of(published("cifar10_cond_sid", True, tmp_path, objective=one)) for one in (SiD(), DiffInstruct())
    )
    assert sid.flops / diff_instruct.flops == pytest.approx(11 / 9, rel=0.1)
    assert sid.updated == diff_instruct.updated > 0 and sid.sent == diff_instruct.sent > 0
    assert "cifar10_sid" in paper_recipes()


def test_work_is_of_a_sample(tmp_path: Path) -> None:
    run = published("cifar10_cond_sid", True, tmp_path)
    assert work_of(run) == work_of(replace(run, batch_size=64))
    twice = work_of(replace(run, fake_updates=2))
    assert work_of(run).flops < twice.flops < 2 * work_of(run).flops


def test_the_measured_peak_is_about_the_plan(tmp_path: Path) -> None:
    run = published("imagenet64_sid", True, tmp_path, precision="float32")
    assert measured_peak(run, Accelerator(cpu=True)) == pytest.approx(plan(run, 1).peak.bytes, rel=0.15)
