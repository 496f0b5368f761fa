"""What an update sends, steps and reads, on two processes: a phase communicates the one network it updates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import distillation, launch, once, teacher_recipe
from tests.trainers.counting import COUNTED

FAKE_UPDATES = {"dmd2": 2, "realuid": 2, "sid_reuse": 2}
MEANS = {("f_distill", "generator"): (3, 28)}  # means over the global batch an update, of so many bytes


def cases(teachers: Path) -> dict[str, dict[str, Any]]:
    names = ["sid", "diff_instruct", "fgm", "dmd2", "realuid", "f_distill", "sid_lora", "dmd"]
    return {
        **{name: distillation(name, teachers) for name in names},
        "sid_micro": distillation("sid", teachers, micro_batches=2),
        "sid_reuse": distillation("sid", teachers, reuse_samples=True, fake_updates=2),
        "sid_clipped": distillation("sid", teachers, max_grad_norm=1.0),
        "teacher": teacher_recipe(),
    }


def updates_of(player: str, name: str) -> int:
    return FAKE_UPDATES.get(name, 1) if player == "fake" else 1


@pytest.fixture(scope="module")
def counted(teachers: Path, shared: Path) -> list[dict[str, Any]]:
    """What each of two ranks counted."""

    def make(folder: Path) -> None:
        (folder / "cases.json").write_text(json.dumps(cases(teachers)))
        program = str(Path(__file__).with_name("counting.py"))
        job = launch([program, str(folder / "cases.json"), str(folder)], folder / "output.txt", world=2)
        assert job.finish() == 0, job.text

    folder = once(shared, "counted", make)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", cases(Path()))
def test_a_phase_sends_the_gradients_of_its_own_network_once(name: str, counted: list[dict[str, Any]]) -> None:
    for found in (rank[name] for rank in counted):
        expected = {}
        for player, size in found["trained"].items():
            updates, (more, few) = updates_of(player, name), MEANS.get((name, player), (0, 0))
            expected[f"{player} allreduce_"] = [COUNTED * (updates + more), COUNTED * (updates * size + more * few)]
        assert found["traffic"] == expected


@pytest.mark.parametrize("name", cases(Path()))
def test_a_phase_steps_its_own_network_once(name: str, counted: list[dict[str, Any]]) -> None:
    for found in (rank[name] for rank in counted):
        assert found["steps"] == {player: COUNTED * updates_of(player, name) for player in found["trained"]}


@pytest.mark.parametrize("name", cases(Path()))
def test_the_host_reads_at_log_points_alone(name: str, counted: list[dict[str, Any]]) -> None:
    """Beside the positions of real images and pairs, which it drew itself, and then ranks talk once."""
    for found in (rank[name] for rank in counted):
        assert set(found["reads"]) <= {"batch"}
        assert found["log"] == {"between updates allgather_": 1} and found["log reads"] > 0
