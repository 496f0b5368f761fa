"""Sharded networks train what whole ones do, on any number of processes, and each process holds its share alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from distill import UserError
from distill.teachers import save_denoiser
from tests.tiny import (
    ADAPTERS,
    build_session,
    distill,
    distillation,
    experiment,
    fit_run,
    launch,
    once,
    opened,
    recipe,
    tiny_denoiser,
)
from tests.trainers.engine.test_data_parallel import Report, assert_close, difference
from tests.trainers.engine.worker import train
from trainers.checkpoints.tensor_files import ShardedTensors
from trainers.engine import sharding
from trainers.plan.trace import plan
from trainers.recipe.run import Run
from trainers.runs.load import load_trained

LORA = {"generator": ADAPTERS, "fake": {"lr": 1e-2, "lora": {"rank": 3}}}
TRAINED = {
    f"{name}{kind}": (name, more) for name in ("sid", "dmd2", "fgm") for kind, more in (("", {}), (" lora", LORA))
}
R1 = "dmd2, adaptive noise, r1"
CLIPPED = {"micro_batches": 2, "max_grad_norm": 1e-3, "backprop": "one_by_one"}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "micro-batches, clipped": ("sid", CLIPPED),
    "offloaded": ("sid", {**CLIPPED, "sharding": {"offload": "all"}}),
    "elements clamped": ("sid", {"fake": {"lr": 1e-3, "max_grad_element": 1e-2}}),
    "the teacher offloaded": ("sid", {**LORA, "sharding": {"offload": "teacher"}}),
    "reused samples": ("sid", {"reuse_samples": True, "fake_updates": 2}),
    "recomputed": ("dmd2", {"gradient_checkpointing": True, **LORA}),
    "inside a block": ("dmd2", {"objective": {"name": "dmd2", "tap": ["unet.down_blocks.0.resnets.0", "middle"]}}),
    "gathered through an update": (R1, {"sharding": {"reshard_after_forward": False}}),
    "the teacher alone": ("sid", {"sharding": {"generator": False, "fake": False}}),
    "the players alone": ("sid", {"sharding": {"teacher": False}, **LORA}),
    "averages": ("guided", {"power_ema": {"stds": [0.1], "snapshot_every": 8}}),
    "scalars, weights that are put back, uncertainty": ("sida, uncertainty", {}),
}
GOES_ON = "fake_lora"  # full and adapted, with a discriminator: what stops on one layout and goes on on another


def double(name: str, teachers: Path, **more: Any) -> dict[str, Any]:
    return distillation(name, teachers, precision="float64", images=480, **more)


def on_two(teachers: Path, folder: Path) -> dict[str, dict[str, Any]]:
    cases: dict[str, dict[str, Any]] = {}
    for case, (name, more) in TRAINED.items():
        cases[case] = {"settings": double(name, teachers, sharding={}, **more)}
        cases[f"{case} whole"] = {"settings": double(name, teachers, **more)}
        cases[f"{case} float32"] = {"settings": distillation(name, teachers, sharding={}, **more), "updates": 1}
    for case, (name, more) in OPTIONS.items():
        cases[case] = {"settings": double(name, teachers, **{"sharding": {}, **more}), "updates": 3}
    bits = str(folder / "bits")
    cases["8 bits"] = {"settings": {**in_8_bits(folder), "sharding": {}}, "updates": 4, "save": bits}
    cases["8 bits, on"] = {"settings": {**in_8_bits(folder), "sharding": {}}, "updates": 2, "load": newest(bits)}
    for kind, more in {"": {"sharding": {}}, ", whole": {}}.items():
        settings = distillation("dmd2", teachers, precision="bfloat16", **more)
        cases[f"bfloat16{kind}"] = {"settings": settings, "updates": 2}
    cases["large"] = {"settings": recipe(folder / "large", sharding={}), "updates": 0}
    shards, whole = str(folder / "shards"), str(folder / "whole")
    sharded, plain = double(GOES_ON, teachers, sharding={}), double(GOES_ON, teachers)
    cases["until"] = {"settings": sharded, "updates": 4, "save": shards}
    cases["until, whole"] = {"settings": plain, "updates": 4, "save": whole}
    cases["on"] = {"settings": sharded, "load": newest(shards)}
    cases["on, whole to shards"] = {"settings": sharded, "load": newest(whole)}
    cases["on, shards to whole"] = {"settings": plain, "load": newest(shards)}
    return cases


def on_four(teachers: Path, folder: Path) -> dict[str, dict[str, Any]]:
    layouts = {"shards": {}, "replicas": {"replicas": 2}}
    return {
        f"on, {case} of four": {
            "settings": double(GOES_ON, teachers, sharding=settings),
            "load": newest(str(folder / "shards")),
        }
        for case, settings in layouts.items()
    }


def in_8_bits(folder: Path) -> dict[str, Any]:
    """A recipe for a teacher that has matrices of more than 4,096 elements."""
    players = {name: {"name": "adam8bit", "lr": 1e-3, "betas": [0.9, 0.99]} for name in ("generator", "fake")}
    return recipe(folder / "wide", precision="float64", **players)


def on_one(teachers: Path, folder: Path) -> dict[str, dict[str, Any]]:
    cases = {
        f"alone, {case}": {"settings": double(name, teachers, **more), "updates": 3}
        for case, (name, more) in OPTIONS.items()
        if "offload" in more.get("sharding", {})
    }
    settings = double(GOES_ON, teachers, sharding={"offload": "all"})
    return {**cases, "on, shards to one that offloads": {"settings": settings, "load": newest(str(folder / "shards"))}}


def newest(folder: str) -> str:
    return str(Path(folder) / f"{32:012d}")


@pytest.fixture(scope="session")
def reports(teachers: Path, shared: Path) -> Path:
    """The folder of what two ranks and then four reported, once for all tests."""

    def make(folder: Path) -> None:
        program = str(Path(__file__).with_name("worker.py"))
        save_denoiser(tiny_denoiser(block_out_channels=[256], norm_num_groups=32), folder / "large")
        save_denoiser(tiny_denoiser(block_out_channels=[28]), folder / "wide")
        for world, make_cases in {2: on_two, 4: on_four, 1: on_one}.items():
            cases = make_cases(teachers, folder)
            (folder / f"{world}.json").write_text(json.dumps(cases))
            job = launch([program, str(folder / f"{world}.json"), str(folder)], folder / "output.txt", world=world)
            assert job.finish(timeout=1200) == 0, job.text

    return once(shared, "sharded", make)


def report(folder: Path, name: str) -> Report:
    return load_file(folder / f"{name}.safetensors")


@pytest.mark.parametrize("case", TRAINED)
def test_shards_train_what_whole_networks_do(case: str, reports: Path) -> None:
    """8 updates in float64, against DDP."""
    assert_close(report(reports, f"{case} whole"), report(reports, case), 1e-9)


@pytest.mark.parametrize("case", TRAINED)
def test_first_gradients_agree_in_float32(case: str, teachers: Path, reports: Path) -> None:
    name, more = TRAINED[case]
    one, two = train(distillation(name, teachers, **more), 1), report(reports, f"{case} float32")
    for key in ("fake gradient", "generator gradient"):
        assert two[key].dtype == torch.float32
        assert difference(one[key], two[key]) < 1e-5


@pytest.mark.parametrize("case", OPTIONS)
def test_every_way_of_a_step(case: str, teachers: Path, reports: Path) -> None:
    name, more = OPTIONS[case]
    settings = double(name, teachers, **{key: value for key, value in more.items() if key != "sharding"})
    whole = train(settings, 3)
    assert_close(whole, report(reports, case), 1e-9)
    if "offload" in case:
        alone = report(reports, f"alone, {case}")
        assert_close(whole, alone, 1e-9)
        assert alone["bytes"][1] > 0  # it gathers, although it is one process


def test_what_is_offloaded_is_the_same_to_the_bit(reports: Path) -> None:
    held, offloaded = report(reports, "micro-batches, clipped"), report(reports, "offloaded")
    assert all(torch.equal(held[key], offloaded[key]) for key in held if key not in ("bytes", "offloading"))
    assert int(held["offloading"]) == 0 < int(offloaded["offloading"])


def test_masters_are_float32_and_gathered_in_bfloat16(reports: Path) -> None:
    sharded, whole = report(reports, "bfloat16"), report(reports, "bfloat16, whole")
    for key in ("generator after", "fake after", "fake gradient", "average"):
        assert sharded[key].dtype == torch.float32
    assert difference(whole["fake gradient"], sharded["fake gradient"]) < 0.02
    assert difference(whole["losses"], sharded["losses"]) < 0.02
    double = int(report(reports, "dmd2")["bytes"][1])  # 4 times as much, but for the head of the discriminator
    assert 3 < double / int(sharded["bytes"][1]) <= 4


def test_bytes_of_8_bit_adam_are_the_same_on_any_layout(teachers: Path, reports: Path, tmp_path: Path) -> None:
    """Blocks end where rows do, of which two processes have some each; what they wrote they and one go on from."""
    assert_close(train(in_8_bits(reports), 4, save=str(tmp_path)), report(reports, "8 bits"), 1e-9)
    folders = [newest(str(folder)) for folder in (tmp_path, reports / "bits")]
    for name in ("generator.optimizer", "fake.optimizer"):
        alone, two = (ShardedTensors(Path(folder), name) for folder in folders)
        assert set(alone) == set(two) and sum(key.endswith("codes") for key in alone) > 10
        for key in alone:
            same = torch.equal if alone[key].dtype == torch.uint8 else torch.allclose
            assert same(alone[key], two[key]), key
    one, changed = (train(in_8_bits(reports), 2, load=folder) for folder in folders)
    for key in ("generator after", "fake after", "average", "losses"):
        assert difference(one[key], changed[key]) < 1e-9 > difference(one[key], report(reports, "8 bits, on")[key]), key


def test_another_layout_goes_on_as_the_same_would(teachers: Path, reports: Path) -> None:
    """8 updates after the change; every layout draws the same samples."""
    same = report(reports, "on")
    cases = ("whole to shards", "shards to whole", "shards of four", "replicas of four", "shards to one that offloads")
    others = {case: report(reports, f"on, {case}") for case in cases}
    others["one process"] = train(double(GOES_ON, teachers), load=newest(str(reports / "shards")))
    for case, other in others.items():
        assert same["drawn"].equal(other["drawn"]), case
        for key in ("generator after", "fake after", "average", "losses"):
            assert difference(same[key], other[key]) < 1e-9, (case, key)


@pytest.mark.parametrize("case", ["sid", "sid lora"])
def test_a_process_holds_its_rows(case: str, teachers: Path, reports: Path) -> None:
    """Between updates the rows that are due, as a plan says; gathered at once what is outside the blocks and one
    block."""
    name, more = TRAINED[case]
    session = build_session(double(name, teachers, **more))
    assert session.teacher is not None
    players = [player.bare for player in session.state.players.values()]
    every = [*players, session.teacher, session.state.ema.module]
    parameters = {id(p): p for network in every for p in network.parameters()}.values()
    everything = sum(p.nbytes for p in parameters)
    held, gathered, _ = report(reports, case)["bytes"].tolist()
    assert report(reports, f"{case} whole")["bytes"].tolist()[:2] == [everything, 0]
    assert held == sum(padded(p) for p in parameters) // 2 < 0.55 * everything
    predicted = plan(cast(Run, experiment(double(name, teachers, sharding={}, **more))), 2).rest
    assert held == sum(size for kind, size in predicted.items() if kind.endswith((": weights", "average")))
    outside, largest = 0, 0
    for network in (*players, session.teacher):
        *blocks, _ = sharding.sharding_units(network)
        sizes = [sum(padded(p) for p in block.parameters()) for block in blocks]
        outside, largest = outside + sum(padded(p) for p in network.parameters()) - sum(sizes), max(largest, *sizes)
    assert gathered == outside + largest


def test_no_process_reads_a_network_whole(reports: Path) -> None:
    """What a process has taken of its own memory once all is built, its file being mapped."""
    held, _, taken = report(reports, "large")["bytes"].tolist()
    assert held > 70e6 and taken < 1.1 * held


def padded(parameter: Tensor) -> int:
    """Bytes with as many rows for both processes."""
    return -(-len(parameter) // 2) * 2 * parameter[0].nbytes


def test_what_cannot_be_sharded_is_refused(teachers: Path) -> None:
    with pytest.raises(UserError, match=r"generator.name: sgd has no sharded form; use adam, or sharding.generator: "):
        experiment(recipe(teachers / "edm", generator={"name": "sgd"}, sharding={}))
    with pytest.raises(UserError, match=r"sharding.fake: its adapters are on the teacher's own weights, which are "):
        experiment(recipe(teachers / "edm", fake=ADAPTERS, sharding={"fake": False}))
    with pytest.raises(UserError, match=r"sharding'?: offload: only what is sharded is offloaded; set teacher: true$"):
        experiment(recipe(teachers / "edm", sharding={"teacher": False, "offload": "teacher"}))
    with pytest.raises(UserError, match=r"^sharding.replicas: 3 must divide the 8 processes$"):
        experiment(recipe(teachers / "edm", sharding={"replicas": 3})).check_world(8)
    with pytest.raises(UserError, match=r"^sharding.reshard_after_forward: must be false for r1 without noise, "):
        opened(distillation(R1, teachers, sharding={}))


@pytest.mark.parametrize(("world", "sharding"), [(2, {}), (1, {"offload": "all"})], ids=["sharded", "offloaded"])
def test_a_sharded_run_and_its_files(world: int, sharding: dict[str, Any], teachers: Path, tmp_path: Path) -> None:
    """Samples, evaluations, snapshots and checkpoints on the way; one process loads all of them."""
    every = {"evaluation": {"every": 16, "samples": 33}, "samples_every": 16, "checkpoint_every": 16}
    power = {"power_ema": {"stds": [0.1], "snapshot_every": 16}}
    settings = {**double("guided", teachers), **every, **power, "images": 32}
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps({**settings, "sharding": sharding}))
    job = distill(["train", str(file), "--folder", str(tmp_path / "tiny")], tmp_path / "output.txt", world=world)
    assert job.finish() == 0, job.text
    fit_run(settings, tmp_path / "alone")
    noise, labels = torch.randn(4, 1, 8, 8, dtype=torch.float64), torch.arange(4)
    for which in ("last", "best"):
        sharded, alone = (load_trained(tmp_path / run, which).sampler(noise, labels) for run in ("tiny", "alone"))
        assert difference(alone.flatten(), sharded.flatten()) < 1e-9
    metrics = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("tiny", "alone")]
    for ours, theirs in zip(*(map(json.loads, lines) for lines in metrics), strict=True):
        assert ours["images"] == theirs["images"] and ours["samples"] == 33
        assert math.isclose(ours["frechet"], theirs["frechet"], rel_tol=1e-5)
    snapshots = [load_file(tmp_path / run / f"power_ema/{32:012d}/0.1.safetensors") for run in ("tiny", "alone")]
    assert all(
        difference(one.flatten(), two.flatten()) < 1e-9 for one, two in zip(*map(dict.values, snapshots), strict=True)
    )
    pictures = [sorted(file.name for file in (tmp_path / run / "samples").iterdir()) for run in ("tiny", "alone")]
    assert pictures[0] == pictures[1] and len(pictures[0]) == 2
