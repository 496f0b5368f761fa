"""`distill plan` tells peak and messages, and exits by whether it fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from distill.errors import UserError
from tests.launch.conftest import Command
from tests.tiny import recipe
from trainers.io import console
from trainers.plan.ledger import ALL, BETWEEN, WITHIN, Traffic
from trainers.plan.report import bytes_out, bytes_sent, parse_bytes
from trainers.plan.trace import Plan


def test_what_fits_and_what_does_not(distill: Command, teachers: Path) -> None:
    """At 8 samples 10,609 parameters need 2.5 MB; half a sample's share less at 4 micro-batches."""
    Path("small.yaml").write_text(yaml.safe_dump(recipe(teachers / "edm")))
    fits = distill("plan", "small.yaml", "--gpus", "2", "--memory", "80GB")
    assert fits.code == 0
    assert "tiny on 2 GPUs in 1 machines: 4 samples a GPU and update" in fits.out
    assert "largest: activations and temporaries" in fits.out and "generator, allreduce" in fits.out
    assert fits.out.splitlines()[-1].startswith("fits: 1.")
    large = distill("plan", "small.yaml", "--gpus", "2", "--memory", "1.2MB")
    assert large.code == 1
    assert "cheapest changes that make it fit: micro_batches=" in large.out.splitlines()[-1]


def test_a_slow_plan_says_at_which_step_it_is(
    distill: Command, teachers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("small.yaml").write_text(yaml.safe_dump(recipe(teachers / "edm")))
    assert distill("plan", "small.yaml", "--gpus", "2").err == ""
    monkeypatch.setattr(console, "SECONDS_BETWEEN", 0.0)
    steps = ["the teacher's configs", *(f"update of the {name}: micro-batch 1 of 1" for name in ("fake", "generator"))]
    large = distill("plan", "small.yaml", "--gpus", "2", "--memory", "1.2MB").err.splitlines()
    assert large[:4] == [*steps, "micro_batches=2: the teacher's configs"]
    assert "micro_batches=2: update of the fake: micro-batch 2 of 2" in large


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--memory", "much"], "--memory: must be a size as 80GB or 80GiB, got 'much'"),
        (["--gpus", "4", "--nodes", "3"], "--nodes: 3 must divide --gpus 4"),
        (["--gpus", "3"], "batch_size: 8 is not divisible by processes x micro_batches = 3 x 1"),
        (["teacher=nowhere"], "teacher: no folder"),
    ],
)
def test_mistakes(arguments: list[str], said: str, distill: Command, teachers: Path) -> None:
    Path("small.yaml").write_text(yaml.safe_dump(recipe(teachers / "edm")))
    result = distill("plan", "small.yaml", *arguments)
    assert result.code == 2 and said in result.err


def test_sizes() -> None:
    assert [parse_bytes(text) for text in ("80GB", "80 gib", "1.5TB", "7")] == [80e9, 80 * 2**30, 1.5e12, 7]
    with pytest.raises(UserError, match="--memory"):
        parse_bytes("0GB")


def test_what_a_gpu_sends() -> None:
    """A ring of 4 moves 3/4 of a message to gather it and twice that to reduce it for all."""
    assert (
        bytes_sent("_allgather_base_", Traffic(1, 400), 4)
        == bytes_sent("_reduce_scatter_base_", Traffic(1, 400), 4)
        == 300
    )
    assert bytes_sent("allreduce_", Traffic(1, 400), 4) == 600 and bytes_sent("allreduce_", Traffic(1, 400), 1) == 0


def test_what_leaves_a_machine() -> None:
    """8 GPUs in 2 replicas: of 4 with 200 bytes each, which in 2 machines meet one other, in 4 are in 2 of them."""
    found, message, rows = Plan(8, {}, {}, {}, {}, replicas=2), Traffic(1, 800), Traffic(1, 200)
    assert bytes_out(found, "allreduce_", ALL, message, 2) == (1400, 800)
    assert bytes_out(found, "_allgather_base_", WITHIN, message, 2) == (600, 0)
    assert bytes_out(found, "_allgather_base_", WITHIN, message, 4) == (600, 400)
    assert bytes_out(found, "allreduce_", BETWEEN, rows, 2) == (200, 800)
    assert bytes_out(found, "allreduce_", BETWEEN, rows, 1) == (200, 0)
