"""What an update sends, steps and reads, on several processes: a phase communicates the one network it updates, and
gathers those it asks where they are shared out. A plan says the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from tests.tiny import distillation, experiment, launch, once, teacher_recipe
from tests.trainers.engine.counting import COUNTED
from trainers.plan.ledger import ALL, BETWEEN, WITHIN
from trainers.plan.trace import plan
from trainers.recipe.run import Run

Counts = dict[str, Any]
FAKE_UPDATES = {"dmd2": 2, "realuid": 2, "sid_reuse": 2}
MEANS = {("f_distill", "generator"): (3, 28)}  # means over the global batch an update, of so many bytes

# How often an update gathers mid, up, down block, what is outside them, and the discriminator's head.
ASKED = (1, 1, 1, 1)
BACK = (2, 2, 2, 1)  # a block for its forward and for its backward, what is outside them once for both
TWICE = (2, 2, 2, 2)
SID = {"generator": BACK, "teacher": BACK, "fake": BACK}
FAKE = {"generator": ASKED, "fake": BACK}
GATHERED: dict[str, dict[str, dict[str, tuple[int, ...]]]] = {
    "sid": {"fake": FAKE, "generator": SID},
    "sid_lora": {"fake": FAKE, "generator": SID},
    "sid_micro": {
        "fake": {"generator": TWICE, "fake": (4, 4, 4, 2)},
        "generator": dict.fromkeys(SID, (4, 4, 4, 2)),
    },
    "diff_instruct": {"fake": FAKE, "generator": {"generator": BACK, "teacher": ASKED, "fake": ASKED}},
    "dmd2": {  # the tap is behind mid: what is asked for its features leaves up out
        "fake": {"generator": ASKED, "fake": (4, 2, 4, 1, 2)},  # x, and features of it and of real images
        "generator": {"generator": BACK, "teacher": ASKED, "fake": (3, 1, 3, 2, 1)},
    },
    "kept": {  # in both micro-batches
        "fake": {"generator": TWICE, "fake": ASKED},
        "generator": {"generator": ASKED, "teacher": TWICE, "fake": TWICE},
    },
    "teacher alone": {"generator": {"teacher": BACK}},
}
SHARDED: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("sid", "sid_lora", "diff_instruct")},
    "sid_micro": ("sid", {"micro_batches": 2}),
    "dmd2": ("dmd2", {"log_every": 96}),
    "dmd2, logged": ("dmd2", {}),  # its two terms are told apart, which takes the teacher's and fake's blocks again
    "kept": ("sid", {"sharding": {"reshard_after_forward": False}, "micro_batches": 2}),
    "teacher alone": ("sid", {"sharding": {"generator": False, "fake": False}}),
}


def whole(teachers: Path) -> dict[str, Counts]:
    """The recipes under DDP."""
    names = ["sid", "diff_instruct", "fgm", "dmd2", "realuid", "f_distill", "sid_lora", "dmd"]
    return {
        **{name: distillation(name, teachers) for name in names},
        "sid_micro": distillation("sid", teachers, micro_batches=2),
        "sid_reuse": distillation("sid", teachers, reuse_samples=True, fake_updates=2),
        "sid_clipped": distillation("sid", teachers, max_grad_norm=1.0),
        "teacher": teacher_recipe(),
    }


def on_two(teachers: Path) -> dict[str, Counts]:
    """Those, and the sharded ones."""
    rows = {
        f"{name}, sharded": distillation(known, teachers, **{"sharding": {}, "log_every": 8, **changes})
        for name, (known, changes) in SHARDED.items()
    }
    return whole(teachers) | rows


def on_four(teachers: Path) -> dict[str, Counts]:
    return {"sid, replicas": distillation("sid", teachers, sharding={"replicas": 2}, log_every=8)}


def updates_of(player: str, name: str) -> int:
    return FAKE_UPDATES.get(name.partition(",")[0], 1) if player == "fake" else 1


def count(shared: Path, world: int, cases: dict[str, Counts]) -> list[dict[str, Counts]]:
    """What each of `world` ranks counts."""

    def make(folder: Path) -> None:
        (folder / "cases.json").write_text(json.dumps(cases))
        program = str(Path(__file__).with_name("counting.py"))
        job = launch([program, str(folder / "cases.json"), str(folder)], folder / "output.txt", world=world)
        assert job.finish(timeout=1200) == 0, job.text

    folder = once(shared, f"counted on {world}", make)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


@pytest.fixture(scope="module")
def counted(teachers: Path, shared: Path) -> list[dict[str, Counts]]:
    return count(shared, 2, on_two(teachers))


@pytest.fixture(scope="module")
def counted_on_four(teachers: Path, shared: Path) -> list[dict[str, Counts]]:
    return count(shared, 4, on_four(teachers))


@pytest.mark.parametrize("name", whole(Path()))
def test_a_phase_sends_the_gradients_of_its_own_network_once(name: str, counted: list[dict[str, Counts]]) -> None:
    for found in (rank[name] for rank in counted):
        expected = {}
        for player, size in found["trained"].items():
            updates, (more, few) = updates_of(player, name), MEANS.get((name, player), (0, 0))
            messages = [COUNTED * (updates + more), COUNTED * (updates * size + more * few)]
            expected[f"{player}, allreduce_, {ALL}"] = messages
        assert found["traffic"] == expected


@pytest.mark.parametrize("name", GATHERED)
def test_a_phase_gathers_what_it_asks_and_reduces_its_own_network(name: str, counted: list[dict[str, Counts]]) -> None:
    """Gradients in every micro-batch; and a norm of 8 bytes, of which every process knows its rows'."""
    for found in (rank[f"{name}, sharded"] for rank in counted):
        assert found["traffic"] == messages(name, found, ALL)
        assert_units_are_the_networks(found)


def test_replicas_gather_each_for_itself_and_average_their_rows(counted_on_four: list[dict[str, Counts]]) -> None:
    for found in (rank["sid, replicas"] for rank in counted_on_four):
        expected = messages("sid", found, WITHIN)
        for player, sizes in found["reduced"].items():
            expected[f"{player}, allreduce_, {BETWEEN}"] = [COUNTED * len(sizes), COUNTED * sum(sizes) // 2]
        assert found["traffic"] == expected
        assert_units_are_the_networks(found)


def messages(name: str, found: Counts, group: str) -> dict[str, list[int]]:
    """Of a sharded run, among those that share out a network."""
    expected, micro = {}, SHARDED[name][1].get("micro_batches", 1)
    for phase, asked in GATHERED[name].items():
        updates = COUNTED * updates_of(phase, name)
        times = [n for network in asked for n in asked[network]]
        sizes = [size for network in asked for size in found["gathered"][network]]
        total = sum(n * size for n, size in zip(times, sizes, strict=True))
        expected[f"{phase}, _allgather_base_, {group}"] = [updates * sum(times), updates * total]
    for player, size in found["trained"].items():
        updates = COUNTED * updates_of(player, name)
        if player in found["reduced"]:
            rows = found["reduced"][player]
            scattered = [updates * micro * len(rows), updates * micro * sum(rows)]
            expected[f"{player}, _reduce_scatter_base_, {group}"] = scattered
            expected[f"{player}, allreduce_, {group}"] = [updates, updates * 8]
        else:
            expected[f"{player}, allreduce_, {ALL}"] = [updates, updates * size]
    return expected


def assert_units_are_the_networks(found: Counts) -> None:
    """All their parameters, and rows that make shares equal: one to three of an adapter."""
    for player, rows in found["reduced"].items():
        assert found["trained"][player] <= sum(rows) < 4 / 3 * found["trained"][player]
    assert all(sum(rows) > 42_436 for rows in found["gathered"].values())  # 10,609 parameters in float32, or more


@pytest.mark.parametrize("name", on_two(Path()))
def test_a_phase_steps_its_own_network_once(name: str, counted: list[dict[str, Counts]]) -> None:
    for found in (rank[name] for rank in counted):
        assert found["steps"] == {player: COUNTED * updates_of(player, name) for player in found["trained"]}


@pytest.mark.parametrize("name", on_two(Path()))
def test_the_host_reads_at_log_points_alone(name: str, counted: list[dict[str, Counts]]) -> None:
    """Beside the positions of real images and pairs, which it drew itself, and then ranks talk once."""
    for found in (rank[name] for rank in counted):
        assert set(found["reads"]) <= {"batch"}
        assert found["log"] == {f"between updates, allgather_, {ALL}": 1} and found["log reads"] > 0


SAME = ("sid", "sid_lora", "dmd2, logged", "teacher alone")


@pytest.mark.parametrize("name", ["sid_lora", "sid_micro", "f_distill", *(f"{name}, sharded" for name in SAME)])
def test_a_plan_says_what_two_processes_send(name: str, teachers: Path, counted: list[dict[str, Counts]]) -> None:
    assert planned(on_two(teachers)[name], 2) == counted[0][name]["traffic"]


def test_a_plan_says_what_replicas_send(teachers: Path, counted_on_four: list[dict[str, Counts]]) -> None:
    for name, settings in on_four(teachers).items():
        assert planned(settings, 4) == counted_on_four[0][name]["traffic"]


def planned(settings: Counts, processes: int) -> dict[str, list[int]]:
    """The messages of COUNTED updates."""
    traffic = plan(cast(Run, experiment({**settings, "log_every": 8})), processes).traffic
    return {", ".join(key): [COUNTED * value.calls, COUNTED * value.bytes] for key, value in traffic.items()}
