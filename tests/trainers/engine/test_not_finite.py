"""A loss or gradient that is not finite: its update is skipped on every rank, counted, named; many in a row stop."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

import trainers
from distill.errors import UserError
from tests.tiny import build_session, experiment, fit_run, recipe
from tests.trainers.interrupted import Cut, Interrupt, assert_same
from trainers import loop
from trainers.checkpoints import checkpoint
from trainers.engine import adam8bit
from trainers.engine.session import Session
from trainers.engine.step import advance
from trainers.io.jsonl import read
from trainers.recipe.load import load_run
from trainers.recipe.run import Run
from trainers.recipe.strict_yaml import dump, to_yaml
from trainers.runs.open import Objects, open_run

pytestmark = pytest.mark.usefixtures("trusted_code")

CLASS = "tests.trainers.poison:Poisoned"


def poisoned(teachers: Path, samples: list[int], **changes: Any) -> dict[str, Any]:
    """A recipe whose objective is broken at these samples, in the generator's stream unless `stream` is another."""
    poison = {"name": CLASS, "samples": samples}
    poison |= {key: changes.pop(key) for key in ("stream", "kind") if key in changes}
    return recipe(teachers / "edm", objective=poison, **changes)


def session_of(settings: dict[str, Any]) -> Session:
    return build_session(settings)


def everything(session: Session, name: str) -> dict[str, Tensor]:
    """Weights and the optimizer's state of a player."""
    player = session.state.players[name]
    found = {key: value.clone() for key, value in player.bare.state_dict().items()}
    for parameter, state in zip(player.parameters, map(player.optimizer.state.get, player.parameters), strict=True):
        for key, value in (state or {}).items():
            if value is not None:
                found[f"{id(parameter)} {key}"] = value.clone()
    return found


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {key for key in before if not torch.equal(before[key], after[key])}


OPTIMIZERS = {
    "adam": {"lr": 1e-3},
    "adamw": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1, "betas": [0.9, 0.99]},
    "adam8bit": {"name": "adam8bit", "lr": 1e-3, "betas": [0.9, 0.99]},
    "momentum": {"name": "sgd", "lr": 1e-3, "betas": [0.9, 0.9]},
    "sgd": {"name": "sgd", "lr": 1e-3, "weight_decay": 0.1},
}


@pytest.fixture(autouse=True)
def _in_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adam8bit, "SMALLEST", 64)  # or the tiny networks would have nothing to quantise


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["generator", "fake"])
@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
def test_a_skipped_update_leaves_weights_and_optimizer_as_they_were(
    name: str, optimizer: str, kind: str, teachers: Path
) -> None:
    """One of 8 samples, in the second of two micro-batches, in the second update."""
    chosen = {"generator": OPTIMIZERS[optimizer], "fake": OPTIMIZERS[optimizer]}
    settings = poisoned(teachers, [13], stream=name, kind=kind, micro_batches=2, max_grad_norm=1.0, **chosen)
    session = session_of(settings)
    player = session.state.players[name]
    advance(session)
    assert player.counters() == {"skipped": 0, "streak": 0, "longest": 0}
    before = everything(session, name)
    advance(session)
    assert player.counters() == {"skipped": 1, "streak": 1, "longest": 1}
    assert changed(before, everything(session, name)) == set()
    other = session.state.players["fake" if name == "generator" else "generator"]
    assert other.counters()["skipped"] == 0
    advance(session)
    assert player.counters() == {"skipped": 1, "streak": 0, "longest": 1}
    after = everything(session, name)
    assert len(changed(before, after)) > 10
    assert all(bool(value.isfinite().all()) for value in after.values())
    steps = {float(value) for key, value in after.items() if key.endswith(" step")}
    assert steps == ({2.0} if optimizer.startswith("adam") else set())  # 3 updates, 1 skipped


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_may_begin_with_a_skipped_update(optimizer: str, teachers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows is a first update: the same as with an optimizer that never saw the skipped one."""
    chosen = {"fake": OPTIMIZERS[optimizer]}
    session, clean = (session_of(poisoned(teachers, bad, stream="fake", **chosen)) for bad in ([3], []))
    monkeypatch.setattr(torch, "empty_like", lambda x: torch.full_like(x, 1e3))  # memory that nobody initialised
    advance(session)
    clean.state.players["generator"].bare.load_state_dict(session.state.players["generator"].bare.state_dict())
    clean.state.images = 8
    for each in (session, clean):
        advance(each)
    left, right = everything(session, "fake"), everything(clean, "fake")
    assert all(torch.equal(a, b) for a, b in zip(left.values(), right.values(), strict=True))


def without_found_inf(name: str, parameters: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    """An optimizer of the caller's that does not read `found_inf`."""
    return torch.optim.RMSprop(parameters, lr=1e-3)


@pytest.mark.parametrize("kind", ["nan", "gradient"])
def test_an_optimizer_of_the_callers_skips_too(kind: str, teachers: Path) -> None:
    settings = poisoned(teachers, [13], kind=kind)
    opened = open_run(experiment(settings), 1, objects=Objects(optimizer=without_found_inf))
    session = loop.build_session(opened, Accelerator(cpu=True))
    player = session.state.players["generator"]
    assert {type(one.optimizer) for one in session.state.players.values()} == {torch.optim.RMSprop}
    advance(session)
    before = everything(session, "generator")
    advance(session)
    assert player.counters() == {"skipped": 1, "streak": 1, "longest": 1}
    assert changed(before, everything(session, "generator")) == set()
    assert session.state.players["fake"].counters()["skipped"] == 0
    advance(session)
    after = everything(session, "generator")
    assert len(changed(before, after)) > 10 and all(bool(value.isfinite().all()) for value in after.values())
    assert {float(value) for key, value in after.items() if key.endswith(" step")} == {2.0}
    assert player.learning_rate(session.state.images, 96) == player.optimizer.param_groups[0]["lr"] == 1e-3


def test_a_resume_with_an_optimizer_of_the_callers_is_exact(
    teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever tensors it keeps; without it the run does not go on."""
    settings, given = recipe(teachers / "edm", images=64), {"optimizer": without_found_inf}

    def here() -> Accelerator:
        return Accelerator(cpu=True)

    trainers.train(settings, tmp_path / "whole", accelerator=here(), **given)
    with monkeypatch.context() as patch:
        hooks_of = loop.hooks_of
        patch.setattr(loop, "hooks_of", lambda *arguments: [*hooks_of(*arguments), Interrupt(40)])
        with pytest.raises(Cut):
            trainers.train(settings, tmp_path / "cut", accelerator=here(), **given)
    with pytest.raises(UserError, match=r"resume it there with trainers.resume\(folder, optimizer=\.\.\.\)$"):
        trainers.resume(tmp_path / "cut", accelerator=here())
    trainers.resume(tmp_path / "cut", accelerator=here(), **given)
    assert_same(tmp_path / "whole", tmp_path / "cut")
    (state,) = (tmp_path / "cut/checkpoints" / f"{64:012d}").glob("generator.optimizer*")
    assert {key.split("|")[1] for key in load_file(state)} == {"step", "square_avg"}


def test_skips_are_counted_and_named_in_the_log(teachers: Path, tmp_path: Path) -> None:
    settings = poisoned(teachers, [9, 41], images=64, log_every=16, checkpoint_every=64)
    session = fit_run(settings, tmp_path)
    log = read(tmp_path / "log.jsonl")
    assert [record["images"] for record in log] == [16, 32, 48, 64]
    assert [record["generator/skipped"] for record in log] == [1, 1, 2, 2]
    assert [record["fake/skipped"] for record in log] == [0, 0, 0, 0]
    assert [math.isnan(record["generator/sid"]) for record in log] == [True, False, True, False]  # nothing is masked
    assert all(math.isfinite(record["fake/denoising"]) for record in log)
    assert session.state.players["generator"].counters() == {"skipped": 2, "streak": 0, "longest": 0}
    state = checkpoint.read_state(tmp_path / "checkpoints" / f"{64:012d}")
    assert state["counters"]["generator"] == {"skipped": 2, "streak": 0, "longest": 0}


def test_many_in_a_row_stop_the_run_with_a_checkpoint(teachers: Path, tmp_path: Path) -> None:
    """Updates 2, 3 and 4 are bad: three in a row, seen at the next log point although the fifth was good."""
    settings = poisoned(teachers, [16, 24, 32], log_every=48, checkpoint_every=1000, max_skipped=3)
    with pytest.raises(UserError) as caught:
        fit_run(settings, tmp_path)
    message = str(caught.value)
    assert message.startswith("generator: 3 updates in a row had a non-finite loss or gradient at 48 images;")
    assert "\n" not in message
    assert read(tmp_path / "log.jsonl")[-1]["generator/skipped"] == 3
    found, _ = checkpoint.newest(tmp_path / "checkpoints")
    assert checkpoint.read_state(found)["images"] == 48


def test_fewer_in_a_row_do_not_stop(teachers: Path, tmp_path: Path) -> None:
    """Two rows of two, and one of two that crosses a log point, are no row of three."""
    settings = poisoned(teachers, [0, 8, 24, 32, 56, 64], log_every=64, max_skipped=3)
    session = fit_run(settings, tmp_path)
    assert session.state.players["generator"].counters()["skipped"] == 6
    settings["max_skipped"] = 2
    with pytest.raises(UserError, match="generator: 2 updates in a row"):
        fit_run(settings, tmp_path / "strict")


def test_a_row_may_cross_log_points_and_resumes(teachers: Path, tmp_path: Path) -> None:
    settings = poisoned(teachers, [8, 16, 24], log_every=16, checkpoint_every=24, max_skipped=3)
    with pytest.raises(UserError, match="3 updates in a row had a non-finite loss or gradient at 32 images"):
        fit_run(settings, tmp_path / "whole")
    counters = checkpoint.read_state(tmp_path / "whole/checkpoints" / f"{24:012d}")["counters"]["generator"]
    assert counters["streak"] == 2


def test_a_stopped_run_goes_on_once_its_cause_is_gone(teachers: Path, tmp_path: Path) -> None:
    """The message says what to change in the recipe: then a resume must not stop for the old row."""
    settings = poisoned(teachers, [16, 24, 32, 40], log_every=16, max_skipped=3, images=80)
    with pytest.raises(UserError, match="4 updates in a row"):
        fit_run(settings, tmp_path)
    run = load_run(tmp_path)
    assert isinstance(run, Run)
    (tmp_path / "run.yaml").write_text(to_yaml(dump(replace(run, objective=replace(run.objective, samples=())))))  # type: ignore[call-arg]
    session = fit_run(load_run(tmp_path), tmp_path, resume=True, allow=["objective.samples"])
    assert session.state.images == 80
    assert session.state.players["generator"].counters() == {"skipped": 4, "streak": 0, "longest": 0}
    assert [record["images"] for record in read(tmp_path / "log.jsonl")] == [16, 32, 48, 64, 80]


def test_a_recipe_can_name_the_poison(teachers: Path, tmp_path: Path) -> None:
    """These tests rest on it: the class is found by its name, and its samples come back from run.yaml."""
    fit_run(poisoned(teachers, [9], images=8), tmp_path)
    objective = yaml.safe_load((tmp_path / "run.yaml").read_text())["objective"]
    assert (objective["name"], objective["samples"]) == (CLASS, [9])
    assert json.loads(json.dumps(objective))["alpha"] == 1.2


def kept(run: Path) -> list[int]:
    return [int(folder.name) for folder in checkpoint.folders(run / "checkpoints")]


def test_a_short_run_may_not_skip_most_of_its_end(teachers: Path, tmp_path: Path) -> None:
    """Decay multiplies the weights by -1e33 in the first update: 9 of 10 updates are skipped, fewer than 20."""
    decay = {"name": "adamw", "weight_decay": 1e38, "lr": 1e-5}
    with pytest.raises(UserError, match=r"^generator: 9 updates in a row .* at 80 images; .* at 0 images$") as caught:
        fit_run(recipe(teachers / "edm", images=80, generator=decay), tmp_path)
    assert "\n" not in str(caught.value)
    assert kept(tmp_path) == [80, 72, 48, 0]  # the newest three, and the newest with no skip before it


def test_an_end_that_failed_is_no_finished_run(
    teachers: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A resume trains nothing, fails for the same reason, and does not evaluate; with more images it trains on."""
    evaluation = {"every": 32, "samples": 33}
    settings = poisoned(teachers, [8, 16, 24], images=32, evaluation=evaluation, log_every=1000, checkpoint_every=1000)
    reason = r"^generator: 3 updates in a row .* at 32 images; .* before these updates is at 0 images$"
    for resume in (False, True, True):
        with pytest.raises(UserError, match=reason):
            fit_run(settings, tmp_path, resume=resume)
    assert "finished" not in capfd.readouterr().err
    assert not (tmp_path / "metrics.jsonl").exists()
    longer = fit_run({**settings, "images": 64}, tmp_path, resume=True).state
    assert (longer.images, longer.players["generator"].counters()["streak"]) == (64, 0)


@pytest.mark.parametrize("where", ["Samples", "Checkpoints"])
def test_an_error_in_a_hook_at_the_end_is_made_good(
    where: str, teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last updates are trained again, to the same bits, and the hooks are called."""
    settings = recipe(teachers / "edm", images=32, checkpoint_every=16, samples_every=32, log_every=8)
    fit_run(settings, tmp_path / "whole")

    def fail(hook: Any, session: Session) -> None:
        if session.state.images == 32:
            raise OSError("no space")

    with monkeypatch.context() as broken, pytest.raises(OSError, match="no space"):
        broken.setattr(f"trainers.hooks.{where}.__call__", fail)
        fit_run(settings, tmp_path / "run")
    fit_run(settings, tmp_path / "run", resume=True)
    for place in ("checkpoints/000000000032/ema.safetensors", "samples"):
        one, two = (tmp_path / run / place for run in ("whole", "run"))
        files = [(one, two)] if one.is_file() else list(zip(sorted(one.iterdir()), sorted(two.iterdir()), strict=True))
        assert files and all(a.name == b.name and a.read_bytes() == b.read_bytes() for a, b in files)
    lines = [[json.loads(line)["images"] for line in (tmp_path / run / "log.jsonl").open()] for run in ("whole", "run")]
    assert lines[0] == lines[1] == [8, 16, 24, 32]


@pytest.mark.parametrize("updates", [1, 2, 5])
def test_a_run_whose_every_update_is_skipped_fails(updates: int, teachers: Path, tmp_path: Path) -> None:
    settings = poisoned(teachers, list(range(0, 8 * updates, 8)), images=8 * updates, log_every=1000)
    with pytest.raises(UserError, match=rf"^generator: {updates} updates in a row .* at {8 * updates} images"):
        fit_run(settings, tmp_path)


def test_one_skip_at_the_end_of_a_run_is_none_too_many(teachers: Path, tmp_path: Path) -> None:
    """Also where a resume makes the last update alone, as in the run that nobody stopped."""
    settings = poisoned(teachers, [24], images=32, checkpoint_every=8, keep=9)
    assert fit_run(settings, tmp_path).state.players["generator"].counters()["streak"] == 1
    for folder in checkpoint.folders(tmp_path / "checkpoints")[:1]:
        shutil.rmtree(folder)
    assert fit_run(settings, tmp_path, resume=True).state.players["generator"].counters()["streak"] == 1


def test_a_run_stops_after_max_skipped_updates(teachers: Path, tmp_path: Path) -> None:
    """However seldom it logs."""
    settings = poisoned(
        teachers, list(range(0, 960, 8)), images=960, log_every=960, max_skipped=5, checkpoint_every=960
    )
    with pytest.raises(UserError, match=r"^generator: 5 updates in a row .* at 40 images"):
        fit_run(settings, tmp_path)


def test_the_good_checkpoint_outlives_a_resume_that_fails(teachers: Path, tmp_path: Path) -> None:
    """The first update spoils the weights, which stay finite; then all are skipped. A second resume keeps it too."""
    settings = recipe(teachers / "edm", images=80, keep=1, checkpoint_every=8)
    fit_run(settings, tmp_path)
    assert kept(tmp_path) == [80]
    spoiled = {"images": 800, "generator": {"lr": 1e3}, "fake": {"lr": 1e3}}
    for again in (248, 408):
        with pytest.raises(UserError, match="20 updates in a row"):
            fit_run({**settings, **spoiled}, tmp_path, resume=True, allow=["generator", "fake"])
        assert kept(tmp_path) == [again, *([248] if again > 248 else []), 88, 80]


def test_weights_that_are_not_finite_are_not_saved(teachers: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """An infinite weight in the fourth update; a stop, an evaluation and a save due then find it."""

    def spoil(session: Session) -> None:
        advance(session)
        if session.state.images == 32:
            with torch.no_grad():
                session.state.players["fake"].parameters[0].view(-1)[0] = math.inf

    monkeypatch.setattr(loop, "advance", spoil)
    settings = recipe(teachers / "edm", keep=1, log_every=1000, checkpoint_every=8)
    with pytest.raises(UserError, match=r"^fake: the weights are not finite at 32 images, and are not saved"):
        fit_run(settings, tmp_path)
    assert kept(tmp_path) == [24]


def test_a_run_does_not_begin_with_weights_not_finite(teachers: Path, tmp_path: Path, monkeypatch: Any) -> None:
    build = loop.build_session

    def spoiled(*arguments: Any) -> Session:
        session = build(*arguments)
        with torch.no_grad():
            session.state.ema.module.get_parameter(next(iter(dict(session.state.ema.module.named_parameters())))).mul_(
                math.nan
            )
        return session

    monkeypatch.setattr(loop, "build_session", spoiled)
    with pytest.raises(UserError, match=r"^the average: the weights are not finite at 0 images"):
        fit_run(recipe(teachers / "edm"), tmp_path)
    assert kept(tmp_path) == []
