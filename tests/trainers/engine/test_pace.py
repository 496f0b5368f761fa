"""The warm-up of the fake, and the number of its updates: what they decide, when, and what they leave alone."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from distill.errors import UserError
from distill.objectives.sid import SiD
from tests.tiny import build_session, distillation, experiment, fit_run, launch, recipe
from tests.trainers.engine.test_step import same, weights
from tests.trainers.interrupted import assert_same, fit, interrupted, lines
from trainers.checkpoints import checkpoint
from trainers.engine import pace
from trainers.engine.meter import Meter
from trainers.engine.pace import Pace, next_level, ratios
from trainers.engine.session import Session
from trainers.engine.step import advance
from trainers.plan.trace import plan
from trainers.recipe.run import FakeWarmup, Run

WRONG = {"lr": 1e-1}  # a rate at which the fake loses the teacher's knowledge in the first updates
STILL = {"lr": 1e-9}


def sums(*quotients: float, counts: tuple[float, ...] = (100.0,) * 6) -> tuple[Tensor, Tensor]:
    """The sums of the fake and of the teacher, whose error is 2 in every sample."""
    count = torch.tensor(counts, dtype=torch.float64)
    teacher = torch.stack([2 * count, count], 1)
    fake = torch.stack([2 * count * torch.tensor(quotients, dtype=torch.float64), count], 1)
    return fake, teacher


def test_a_ratio_is_of_the_sums_of_a_bin() -> None:
    fake, teacher = sums(0.5, 1.0, 1.5, 2.0, torch.nan, 3.0, counts=(1.0, 0.0, 7.0, 992.0, 1.0, 1.0))
    expected = {"nsr<0.1": 0.5, "nsr 0.32-1": 1.5, "nsr 1-3.2": 2.0, "nsr 3.2-10": torch.inf, "nsr>10": 3.0}
    assert ratios(fake, teacher) == expected
    assert ratios(fake, teacher, 0.02) == {"nsr 1-3.2": 2.0}


LEVELS: dict[str, tuple[tuple[float, ...], tuple[float, ...], int]] = {
    "a bin lags": ((0.9, 0.9, 0.9, 0.9, 0.9, 1.11), (100.0,) * 6, 4),
    "a bin of too few samples lags": ((0.9, 0.9, 0.9, 0.9, 0.9, 1.5), (100.0,) * 5 + (10.0,), 2),
    "all bins lag": ((1.2,) * 6, (100.0,) * 6, 4),
    "nothing lags": ((0.99,) * 6, (100.0,) * 6, 2),
    "one is between": ((0.9, 1.05, 0.9, 0.9, 0.9, 0.9), (100.0,) * 6, 3),
    "the bins of too few samples lag together": ((0.9, 200.0, 200.0), (100.0, 1.9, 1.9), 4),
    "a broken update": ((0.9, torch.nan, 0.9, 0.9, 0.9, 0.9), (100.0,) * 6, 3),
}


@pytest.mark.parametrize("case", LEVELS)
def test_the_number_of_updates_follows_the_errors(case: str) -> None:
    quotients, counts, after = LEVELS[case]
    empty = (0.0,) * (6 - len(counts))
    found = sums(*quotients, *empty, counts=(*counts, *empty))
    assert next_level(3, *found) == after


def test_the_number_of_updates_has_ends() -> None:
    assert next_level(5, *sums(*[9.0] * 6)) == 5 and next_level(1, *sums(*[0.1] * 6)) == 1


@pytest.mark.parametrize("changes", [{}, {"micro_batches": 2}, {"reuse_samples": True}])
@pytest.mark.parametrize("warmup", [24, {"images": 24, "most": 80}])
def test_the_generator_stays_as_it_is_in_the_warm_up(
    warmup: Any, changes: dict[str, Any], teachers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its averages. The rounds count images, and the fake trains on noise that comes once."""
    monkeypatch.setattr(pace, "WINDOW", 8)
    power = {"stds": [0.1], "snapshot_every": 96}
    settings = recipe(teachers / "edm", fake_warmup=warmup, fake_updates=2, power_ema=power, **changes)
    session = build_session(settings)
    state, players = session.state, session.state.players
    before = [weights(one) for one in (players["generator"].bare, state.ema.module, state.power_ema[0.1].module)]
    fakes = [weights(players["fake"].bare)]
    for number in range(1, 4):
        advance(session)
        fakes.append(weights(players["fake"].bare))
        assert state.images == 8 * number and not same(fakes[-1], fakes[-2])
        now = [weights(one) for one in (players["generator"].bare, state.ema.module, state.power_ema[0.1].module)]
        assert all(map(same, before, now))
        assert (players["generator"].updates, players["fake"].updates) == (0, 2 * number)
    advance(session)
    assert players["generator"].updates == 1 and not same(before[0], weights(players["generator"].bare))


def compared(session: Session, *rounds: int) -> tuple[float, str]:
    """The largest ratio over some rounds of a still generator and fake, from the estimates themselves."""
    nets, run, found = session.nets, session.run, [torch.zeros(6, 2, dtype=torch.float64) for _ in range(2)]
    assert nets is not None and isinstance(run, Run) and isinstance(run.objective, SiD)
    for place in itertools.product(rounds, range(run.micro_batches)):
        batch = session.batches.micro("generator", 8 * place[0], place[1])
        x: Tensor = session.state.players["generator"].bare(batch.noise, batch.cond)
        x_t, t, _ = nets.path.draw(x, run.objective.times, batch.random.stream("generator"))
        bins = (2 * nets.path.nsr(t).log10() + 3).floor().clamp(0, 5).long()
        for total, denoiser in zip(found, (nets.fake, nets.teacher), strict=True):
            error = (denoiser(x_t, t, batch.cond) - x).square().flatten(1).mean(1).detach().double()
            total.index_add_(0, bins, torch.stack([error, torch.ones_like(error)], 1))
    quotients = found[0][:, 0] / found[1][:, 0]
    worst = int(quotients.nan_to_num(0).argmax())
    return float(quotients[worst]), pace.BINS[worst]


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("off", [1.02, 1.2])
def test_the_warm_up_ends_by_what_is_measured(
    off: float, micro_batches: int, teachers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fake is off by a factor on its last layer. Near the teacher the warm-up ends with the first window."""
    monkeypatch.setattr(pace, "WINDOW", 24)
    settings = recipe(teachers / "edm", fake=STILL, micro_batches=micro_batches, fake_warmup={"most": 56})
    session = build_session(settings)
    with torch.no_grad():
        last = [p for p in session.state.players["fake"].parameters if p.ndim == 4][-1]
        last.mul_(off)
    ratio, worst = compared(session, 0, 1, 2)
    assert (ratio <= 1.1) == (off == 1.02)
    capsys.readouterr()
    waits = []
    for _ in range(8):
        advance(session)
        assert session.state.pace is not None
        waits.append(session.state.pace.waits)
    told = capsys.readouterr().err
    if off == 1.02:
        assert waits == [True, True, *[False] * 6]
        at = (
            f"ended at 24 images: the fake's error is {ratio:.3g} times the teacher's at {worst}, and no more elsewhere"
        )
    else:  # the last window has one round, since 56 images are the most
        assert waits == [True] * 6 + [False] * 2
        ratio, worst = compared(session, 6)
        at = f"ended at 56 images: the fake's error is {ratio:.3g} times the teacher's at {worst}; lower fake.lr, or"
    assert told.count("\n") == 1 and told.startswith(f"fake_warmup: {at}")


def test_comparing_changes_no_memory_of_the_objective(teachers: Path) -> None:
    session = build_session(distillation("f_distill", teachers, fake_warmup={"most": 80}, log_every=8))
    before = session.state.memory["ratio"].clone()
    advance(session)
    assert torch.equal(session.state.memory["ratio"], before)
    assert "health/fake_error" in session.state.meter.read(session.accelerator)


def test_the_number_rises_and_falls_in_a_run(teachers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake at too high a rate loses the teacher, and then learns the samples. The log has the number."""
    monkeypatch.setattr(pace, "WINDOW", 256)
    session = build_session(recipe(teachers / "edm", fake=WRONG, fake_updates="auto", batch_size=64, images=2560))
    levels = []
    for _ in range(12):
        advance(session)
        assert session.state.pace is not None
        levels.append(session.state.pace.level)
    assert levels == [1] * 3 + [2] * 4 + [1] * 5
    assert session.state.players["fake"].updates == 4 + 2 * 4 + 4
    mean = session.state.meter.read(session.accelerator)["fake/updates_a_round"]
    assert mean == pytest.approx(16 / 12)


def test_the_sums_of_all_processes_decide() -> None:
    """The errors of this process alone would lower the number, those of another one raise it."""
    run = experiment(recipe("unused", fake_updates="auto", batch_size=pace.WINDOW, images=4 * pace.WINDOW))
    assert isinstance(run, Run)
    decided, nsr = Pace(run, Meter()), torch.full((4,), 0.5)
    decided.level = 3
    decided.note("fake_error", torch.full((4,), 0.9), nsr)
    decided.note("teacher_error", torch.ones(4), nsr)
    factor = torch.tensor([3.0] * 6 + [1.0] * 6)[:, None]  # the names are sent in the order of the alphabet
    two = SimpleNamespace(device=torch.device("cpu"), gather=lambda rows: torch.cat([rows, rows * factor]))
    decided.end_round(run.batch_size, True, cast(Any, two))
    assert (decided.level, decided.samples, decided.errors.totals) == (4, 0, {})


@pytest.mark.parametrize("reuse", [False, True])
def test_no_noise_comes_twice(reuse: bool, teachers: Path) -> None:
    session = build_session(recipe(teachers / "edm", fake_updates="auto", reuse_samples=reuse))
    noises: list[Tensor] = []
    session.state.players["generator"].bare.register_forward_pre_hook(lambda module, inputs: noises.append(inputs[0]))
    for level in (5, 1, 3, 5):
        assert session.state.pace is not None
        session.state.pace.level = level
        advance(session)
    every = torch.cat(noises).flatten(1)
    assert len(every) == len(every.unique(dim=0)) == 8 * (14 + 4 - 4 * reuse)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"fake_warmup": 96}, "fake_warmup: must be at least 0 and below the run's images, 96, got 96"),
    ({"fake_warmup": -8}, "fake_warmup: must be at least 0 and below the run's images, 96, got -8"),
    ({"fake_warmup": {}}, "fake_warmup.most: must be at least 0 and below the run's images, 96, got 100000"),
    ({"fake_warmup": {"images": 9, "most": 8}}, "key 'fake_warmup': images: must be at most `most`, 8, got 9"),
    ({"fake_warmup": {"until": 0, "most": 8}}, "key 'fake_warmup': until: must be positive, got 0.0"),
    ({"fake_updates": "often"}, "key 'fake_updates' must be an integer or 'auto', got 'often'"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        experiment(recipe("unused", **changes))
    assert str(raised.value) == f"test: {message}"


@pytest.mark.parametrize(("key", "value"), [("fake_warmup", 8), ("fake_updates", "auto")])
def test_without_a_fake_there_is_no_pace(key: str, value: Any, teachers: Path) -> None:
    with pytest.raises(UserError, match=rf"^test: {key}: HiPA trains no fake; leave it out$"):
        experiment(distillation("hipa", teachers, **{key: value}))


@pytest.mark.parametrize(("key", "value"), [("fake_warmup", {"most": 8}), ("fake_updates", "auto")])
def test_an_objective_without_the_teacher_is_refused(key: str, value: Any, teachers: Path) -> None:
    session = build_session(distillation("score_mismatching", teachers, **{key: value}))
    line = rf"^{key}: ScoreMismatching notes no teacher_error, by which it would be decided; give a number$"
    with pytest.raises(UserError, match=line):
        advance(session)


def test_a_plan_has_the_largest_number(teachers: Path) -> None:
    found = []
    for changes in ({"fake_updates": 5}, {"fake_updates": "auto", "fake_warmup": {"most": 80}}):
        run = experiment(recipe(teachers / "edm", **changes))
        assert isinstance(run, Run)
        found.append(plan(run, 2))
    assert found[0] == found[1] and found[0].traffic


PACED: dict[str, tuple[str, dict[str, Any]]] = {
    "warm-up": ("sid", {"fake_warmup": {"until": 0.001, "most": 56}}),
    "warm-up by images": ("sid", {"fake_warmup": 32, "fake_updates": 2}),
    "auto": ("dmd2", {"fake": {"lr": 3e-2}, "fake_updates": "auto"}),
    "both, guided": ("guided", {"fake": WRONG, "fake_updates": "auto", "fake_warmup": {"most": 48}}),
    "both, an own wait, micro-batches": (
        "sida",
        {"fake": WRONG, "fake_updates": "auto", "fake_warmup": {"most": 40}, "micro_batches": 2},
    ),
}


@pytest.mark.parametrize("case", PACED)
def test_a_resume_goes_on_to_the_same_bits(
    case: str, teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a window, as the checkpoint at 24 images is."""
    monkeypatch.setattr(pace, "WINDOW", 16)
    name, changes = PACED[case]
    settings = distillation(name, teachers, **changes)
    fit(settings, tmp_path / "whole")
    interrupted(settings, tmp_path / "cut", 40, monkeypatch)
    found, _ = checkpoint.newest(tmp_path / "cut/checkpoints")
    measured = case != "warm-up by images"
    assert checkpoint.read_state(found)["pace"]["samples"] == 8 * measured
    saved = load_file(found / "pace.safetensors")
    assert sorted(saved) == ["fake_error", "teacher_error"] * measured
    session = build_session(settings)
    checkpoint.restore(session, found)
    assert session.state.pace is not None
    assert all(torch.equal(session.state.pace.errors.totals[name], rows[0]) for name, rows in saved.items())
    fit(settings, tmp_path / "cut", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_a_resume_may_begin_to_decide(teachers: Path, tmp_path: Path) -> None:
    """A checkpoint of fixed numbers has no pace."""
    fit_run(recipe(teachers / "edm", images=24, fake_updates=2), tmp_path)
    settings = recipe(teachers / "edm", images=48, fake_updates="auto")
    session = fit_run(settings, tmp_path, resume=True, allow=["fake_updates"])
    assert session.state.pace is not None
    assert (session.state.pace.samples, session.state.players["fake"].updates) == (24, 6 + 3)


def test_two_processes_decide_as_one(teachers: Path, tmp_path: Path) -> None:
    """The warm-up ends in the same round, and each window has as many updates after it."""
    settings = recipe(
        teachers / "edm", precision="float64", batch_size=512, images=512 * 20, log_every=2048, fake=WRONG,
        fake_updates="auto", fake_warmup={"images": 512, "most": 6144}, samples_every=10**6, checkpoint_every=10**6,
    )  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    arguments = ["-m", "launch.main", "train", str(tmp_path / "run.yaml"), "--folder", str(tmp_path / "two")]
    job = launch(arguments, tmp_path / "two.txt", world=2)
    session = fit_run(settings, tmp_path / "one")
    assert job.finish() == 0, job.text
    one, two = ([json.loads(line) for line in lines(tmp_path / name / "log.jsonl")] for name in ("one", "two"))
    for name in ("fake/updates_a_round", "fake/updates", "generator/updates"):
        assert [record[name] for record in one] == [record[name] for record in two]
    assert one[0]["generator/updates"] == 0 < one[-1]["generator/updates"] and session.state.pace is not None
    state = checkpoint.read_state(checkpoint.newest(tmp_path / "two/checkpoints")[0])
    assert state["pace"] == session.state.pace.state() and job.text.count("fake_warmup: ended") == 1


def test_the_default_warm_up() -> None:
    assert FakeWarmup() == FakeWarmup(images=0, until=1.1, most=100_000)
