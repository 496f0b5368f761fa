"""Compiled networks are whole graphs, compiled in the first round alone, and train to the bits of other networks.

A graph runs as torch's own operators here, so that nothing but the tracing is tested. `test_compiler.py` tries what a
compiler makes of it.
"""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from distill import EDM, Denoiser
from distill.errors import UserError
from distill.teachers import OwnNet, save_denoiser
from tests import families
from tests.compiling import counting_graphs
from tests.tiny import DISTILLATIONS, build_session, distillation, launch, once, recipe, teacher_recipe, tiny_denoiser
from tests.trainers.interrupted import assert_same, fit, interrupted
from trainers.engine.session import Session
from trainers.engine.step import advance

pytestmark = pytest.mark.usefixtures("trusted_code")

# The graphs of a loss whose schedule begins it in a later round.
LATER = {"sida": 2, "sida, uncertainty": 2, "uni_instruct": 2}
SOON = ("sid", "dmd2")
SOON_FAMILIES = ("edm2", "flux", "own")


def slowly(names: Any, soon: tuple[str, ...]) -> list[Any]:
    return [name if name in soon else pytest.param(name, marks=pytest.mark.slow) for name in names]


def assert_equal(one: Session, other: Session) -> None:
    for name, player in one.state.players.items():
        for ours, theirs in zip(player.bare.parameters(), other.state.players[name].bare.parameters(), strict=True):
            assert torch.equal(ours, theirs), name


def assert_compiles(settings: dict[str, Any], later: int = 0) -> None:
    """Three rounds give the same weights; all graphs but `later` ones are of the first round."""
    with counting_graphs() as graphs:
        eager = build_session({**settings, "compile": False})
        compiled = build_session({"compile": True, **settings})
        counts = []
        for _ in range(3):
            advance(eager)
            advance(compiled)
            counts.append(len(graphs))
    assert_equal(eager, compiled)
    assert counts[0] and counts[2] == counts[0] + later, counts


@pytest.mark.parametrize("objective", slowly(DISTILLATIONS, SOON))
def test_objectives(objective: str, teachers: Path) -> None:
    assert_compiles(distillation(objective, teachers), LATER.get(objective, 0))


@pytest.fixture(scope="session")
def family(shared: Path) -> Callable[[str], Path]:
    return lambda name: once(shared, f"teacher_{name}", families.TEACHERS[name])


@pytest.mark.parametrize("name", slowly(families.TEACHERS, SOON_FAMILIES))
def test_networks(name: str, family: Callable[[str], Path], tmp_path: Path) -> None:
    objective = "fgm" if name.startswith(families.FLOWS) else "sid"
    assert_compiles(families.recipe(name, objective, family(name), tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        {"backprop": "one_by_one"},
        {"precision": "bfloat16"},
        {"micro_batches": 2, "reuse_samples": False},
        {"gradient_checkpointing": True},
        {"compile": {"blocks": True}},
    ],
    ids=["one by one", "bfloat16", "micro-batches", "gradient checkpointing", "blocks"],
)
def test_ways_to_train(changes: dict[str, Any], teachers: Path) -> None:
    assert_compiles(recipe(teachers / "edm", **changes))


def test_an_optimizer_of_8_bits(tmp_path: Path) -> None:
    """Its step is one graph for each shape of a weight, whatever the learning rate of the round."""
    save_denoiser(tiny_denoiser(block_out_channels=[28]), tmp_path / "wide")
    eight = {"name": "adam8bit", "lr": 1e-3, "betas": [0.9, 0.99], "warmup": 64}
    assert_compiles(recipe(tmp_path / "wide", generator=eight, fake=eight))
    with counting_graphs() as graphs:
        session = build_session(recipe(tmp_path / "wide", generator=eight, fake=eight, compile=True))
        advance(session)
    optimizer = session.state.players["generator"].optimizer
    shapes = {p.shape for p in session.state.players["generator"].parameters if "exp_avg_codes" in optimizer.state[p]}
    assert sum("uint8" in str(graph.graph) for graph in graphs) == len(shapes) > 1


LAYOUTS: dict[str, dict[str, Any]] = {
    "DDP": {},
    "FSDP2": {"sharding": {"generator": True, "fake": True, "teacher": True}},
    "FSDP2, checkpointing": {
        "sharding": {"generator": True, "fake": True, "teacher": True},
        "gradient_checkpointing": True,
    },
}
TOGETHER = [f"{objective} under {layout}" for objective in ("sid", "dmd2", "sid_lora") for layout in LAYOUTS]


@pytest.fixture(scope="session")
def together(teachers: Path, shared: Path) -> Path:
    """The folder of what two processes reported, compiled and not."""

    def make(folder: Path) -> None:
        cases = {}
        for case in TOGETHER:
            objective, layout = case.split(" under ")
            settings = distillation(objective, teachers, precision="float64", batch_size=8, images=160)
            settings |= LAYOUTS[layout]
            for how in (False, True):
                cases[f"{case} {how}"] = {"settings": {**settings, "compile": how}, "updates": 3}
        (folder / "cases.json").write_text(json.dumps(cases))
        program = str(Path(__file__).with_name("worker.py"))
        job = launch([program, str(folder / "cases.json"), str(folder)], folder / "output.txt", world=2)
        assert job.finish(timeout=1200) == 0, job.text

    return once(shared, "compiled_together", make)


@pytest.mark.parametrize("case", TOGETHER)
def test_two_processes(case: str, together: Path) -> None:
    """Replicated networks are whole graphs, and sharded ones graphs of their blocks. None is compiled later."""
    eager, compiled = (load_file(together / f"{case} {how}.safetensors") for how in (False, True))
    assert int(eager["graphs"]) == 0 < int(compiled["graphs"]) and int(compiled["later graphs"]) == 0
    assert compiled["gradients equal on all ranks"].all()
    for key in ("fake after", "generator after", "average", "losses"):
        assert torch.equal(eager[key], compiled[key]), key


def test_a_teacher(teachers: Path) -> None:
    assert_compiles(teacher_recipe())


def test_resume_is_exact(teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also an evaluation and previews between, whose batches have other sizes: they are not compiled."""
    settings = recipe(teachers / "edm", images=48, samples_every=8, compile=True)
    with counting_graphs() as graphs:
        fit(settings, tmp_path / "whole")
        assert len(graphs) == 12  # 3 of networks, and 9 of the functions around them
        interrupted(settings, tmp_path / "cut", 24, monkeypatch)
        fit(settings, tmp_path / "cut", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut")


def test_compile_time_is_told_apart(teachers: Path, tmp_path: Path) -> None:
    """The first line of the log has it, and its speed is without it. Later lines have nothing to tell."""
    with counting_graphs():
        fit(recipe(teachers / "edm", images=48, compile=True, log_every=8), tmp_path / "run")
    times = [json.loads(line)["time"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert times[0]["compile_seconds"] > 0 and not any("compile_seconds" in one for one in times[1:])


def test_compiled_blocks_are_forgotten_with_their_network(teachers: Path) -> None:
    """Compiled code belongs to the class of a block, and keeps no block alive, nor its weights."""
    with counting_graphs() as graphs:
        session = build_session(recipe(teachers / "edm", compile={"blocks": True}))
        advance(session)
        assert graphs
        weights = [weakref.ref(parameter) for parameter in session.state.players["fake"].parameters]
        del session
        gc.collect()
        assert not [one for one in weights if one() is not None]


class Branching(nn.Module):
    """A network that reads a value, of which no graph can be made."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        return x * self.weight if float(x.mean()) > 0 else x - self.weight


def test_a_network_that_cannot_be_compiled_is_refused(tmp_path: Path) -> None:
    save_denoiser(Denoiser(OwnNet(f"{__name__}:Branching", {}, (1, 8, 8), 10, None), EDM(), "edm"), tmp_path / "own")
    session = build_session(recipe(tmp_path / "own", compile=True))
    with pytest.raises(UserError, match=r"^compile: \S+:Branching cannot be compiled: .*; set compile: false$"):
        advance(session)
