"""One process, two processes and micro-batches train the same: to rounding in float64, and ranks never part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.tiny import DISTILLATIONS, distillation, launch, once, recipe, teacher_recipe
from tests.trainers.engine.worker import train

pytestmark = pytest.mark.usefixtures("trusted_code")

Report = dict[str, Tensor]


def cases(teachers: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """What two processes train, by name; one process trains `single` of it here."""
    double = {"precision": "float64", "batch_size": 8, "images": 160}
    sid = recipe(teachers / "edm", **double)
    settings = {
        **{name: distillation(name, teachers, **double) for name in DISTILLATIONS},
        "sid_micro": {**sid, "micro_batches": 2},
        "sid_reuse": {**sid, "reuse_samples": True, "fake_updates": 2},
        "fgm_float32": recipe(teachers / "flow", objective="fgm"),
        "sid_float32": recipe(teachers / "edm"),
        "teacher": teacher_recipe(**double, label_dropout=0.5),
        "poisoned": {**sid, "objective": {"name": "tests.trainers.poison:Poisoned", "samples": [13]}},
    }
    lengths = {"fgm_float32": 1, "sid_float32": 1, "teacher": 8, "poisoned": 3}
    every = {name: {"settings": each, "updates": lengths.get(name, 12)} for name, each in settings.items()}
    every["bare"] = {"settings": sid, "updates": 2, "bare": True}
    every["half"] = {"settings": sid, "updates": 6, "save": str(folder / "half")}
    return every


@pytest.fixture(scope="session")
def two_processes(teachers: Path, shared: Path) -> Path:
    """The folder of what two ranks reported, once for all tests."""

    def make(folder: Path) -> None:
        (folder / "cases.json").write_text(json.dumps(cases(teachers, folder)))
        program = str(Path(__file__).with_name("worker.py"))
        job = launch([program, str(folder / "cases.json"), str(folder)], folder / "output.txt", world=2)
        assert job.finish(timeout=1200) == 0, job.text

    return once(shared, "two_processes", make)


def report(folder: Path, name: str) -> Report:
    return load_file(folder / f"{name}.safetensors")


def single(teachers: Path, name: str, **changes: Any) -> Report:
    """The same case in this process alone, perhaps on another layout."""
    case = cases(teachers, Path())[name]
    return train({**case["settings"], **changes}, case["updates"])


def difference(left: Tensor, right: Tensor) -> float:
    """Relative to the largest entry."""
    assert len(left) == len(right) > 0
    return float((left - right).abs().max() / left.abs().max())


def assert_close(left: Report, right: Report, tolerance: float) -> None:
    compared = [key for key in left if key.endswith((" after", "gradient")) or key in ("average", "losses", "norms")]
    assert len(compared) >= 4
    assert {
        key: difference(left[key], right[key]) for key in compared if difference(left[key], right[key]) > tolerance
    } == {}
    moved = [key.removesuffix(" after") for key in left if key.endswith(" after")]
    for player in moved:
        assert difference(left[f"{player} before"], left[f"{player} after"]) > 1e-3


@pytest.mark.parametrize("name", [*DISTILLATIONS, "sid_reuse", "teacher"])
def test_two_processes_train_what_one_does(name: str, teachers: Path, two_processes: Path) -> None:
    assert_close(single(teachers, name), report(two_processes, name), 1e-9)


@pytest.mark.parametrize("name", ["sid", "diff_instruct"])
def test_micro_batches_train_what_one_batch_does(name: str, teachers: Path) -> None:
    assert_close(single(teachers, name), single(teachers, name, micro_batches=2), 1e-9)


def test_micro_batches_on_two_processes(teachers: Path, two_processes: Path) -> None:
    assert_close(single(teachers, "sid"), report(two_processes, "sid_micro"), 1e-9)


def test_one_process_goes_on_where_two_stopped(teachers: Path, two_processes: Path) -> None:
    settings, folder = cases(teachers, Path())["sid"]["settings"], two_processes / "half" / f"{48:012d}"
    resumed, whole = train(settings, 6, load=str(folder)), single(teachers, "sid")
    for key in ("generator after", "fake after", "average", "losses"):  # the meter of both ranks came along
        assert difference(resumed[key], whole[key]) < 1e-9


@pytest.mark.parametrize("name", ["sid_float32", "fgm_float32"])
def test_first_gradients_agree_in_float32(name: str, teachers: Path, two_processes: Path) -> None:
    one, two = single(teachers, name), report(two_processes, name)
    micro = single(teachers, name, micro_batches=4)
    for player in ("fake", "generator"):
        key = f"{player} gradient"
        assert one[key].dtype == torch.float32
        assert difference(one[key], two[key]) < 1e-5
        assert difference(one[key], micro[key]) < 1e-5


def test_a_loss_that_is_not_finite_on_one_rank_skips_the_update_on_all(teachers: Path, two_processes: Path) -> None:
    """Sample 13 is of the second update, and the second rank's."""
    one, two = single(teachers, "poisoned"), report(two_processes, "poisoned")
    assert one["skipped"].tolist() == [1, 0]
    assert two["skipped"].tolist() == [1, 0, 1, 0]
    for key in ("generator after", "fake after", "average"):
        assert difference(one[key], two[key]) < 1e-9
    assert (
        difference(one["generator after"], train(cases(teachers, Path())["sid"]["settings"], 3)["generator after"])
        > 1e-6
    )


def test_ranks_hold_the_same_gradients_after_every_backward(teachers: Path, two_processes: Path) -> None:
    for name, case in cases(teachers, Path()).items():
        found = report(two_processes, name)
        equal = found["gradients equal on all ranks"]
        assert len(equal) >= case["updates"]
        assert bool(equal.all()) == (name != "bare"), name
        parted = [key for key in found if key.endswith(" equal on all ranks") and not found[key].all()]
        assert bool(parted) == (name == "bare"), name


def test_training_past_the_wrappers_is_seen(teachers: Path, two_processes: Path) -> None:
    """The checks above fail where a player is trained through its bare module: every rank then trains alone."""
    found = report(two_processes, "bare")
    assert not found["gradients equal on all ranks"].any()
    assert not found["generator equal on all ranks"] and not found["fake equal on all ranks"]
    with pytest.raises(AssertionError):
        assert_close(train(cases(teachers, Path())["sid"]["settings"], 2), found, 1e-9)
