"""When hooks are called, and what they leave in the run folder."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

import trainers
from distill.conditions import Condition
from distill.errors import UserError
from distill.metrics import Protocol
from distill.random import Random
from tests.tiny import build_session, fit_run, recipe, teacher_recipe
from trainers.checkpoints import checkpoint
from trainers.data import DataFree, Dataset, Digits
from trainers.data.batches import inputs
from trainers.engine.session import Session
from trainers.engine.stopping import STOP, Stopped
from trainers.evaluation import NotMeasured, draw_samples, evaluate, fit_protocol
from trainers.hooks import Checkpoints, CompareSamples, Evaluate, FiniteCheck, Hook, Samples, Snapshots
from trainers.hooks.samples import preview_inputs
from trainers.io.images import grid
from trainers.io.jsonl import read
from trainers.loop import hooks_of
from trainers.recipe.measures import Evaluation, Metric
from trainers.runs.load import load_trained

CPU = torch.device("cpu")
COPY = Digits().load()


def nearest(noise: Tensor, cond: Condition) -> Tensor:
    """A sampler: real digits of the wanted class, picked by the noise."""
    assert cond.labels is not None and COPY.labels is not None
    picked = [
        torch.nonzero(COPY.labels == c)[:, 0][int(abs(z.sum()) * 1e3) % 174]
        for c, z in zip(cond.labels, noise, strict=True)
    ]
    return COPY.images(torch.stack(picked))


def test_a_hook_is_due_past_every_multiple_and_at_the_end() -> None:
    hook = Checkpoints(cast(Any, None), every=30)
    due = [now for now in range(16, 200, 16) if hook.due(now - 16, now, total=200)]
    assert due == [32, 64, 96, 128, 160, 192]
    assert [now for now in range(10, 101, 10) if hook.due(now - 10, now, total=100)] == [30, 60, 90, 100]
    assert hook.due(90, 100, total=95)
    hook.every = 0
    assert not any(hook.due(now - 10, now, total=100) for now in range(10, 101, 10))
    hook.every = 4  # several multiples in one batch are one call
    assert hook.due(0, 16, total=100)


class Noted(Hook):
    """A user's hook: notes what is on disk when it is called; once it can tell its own process to stop."""

    def __init__(self, folder: Path, every: int, stop_at: int = -1) -> None:
        self.folder, self.every, self.stop_at = folder, every, stop_at
        self.seen: list[tuple[int, bool, bool]] = []

    def __call__(self, session: Session) -> None:
        images = session.state.images
        sampled = (self.folder / "samples" / f"{images:012d}.png").is_file()
        saved = (self.folder / "checkpoints" / f"{images:012d}").exists()
        self.seen.append((images, sampled, saved))
        if images == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
            STOP.poll()


def test_a_hook_of_the_users_comes_after_our_own_and_before_the_checkpoint(teachers: Path, tmp_path: Path) -> None:
    """A stop within it is saved as such: the resume calls it again before it trains on."""
    settings = recipe(teachers / "edm", images=64, samples_every=24, checkpoint_every=24)
    noted, here = Noted(tmp_path, 24, stop_at=48), Accelerator(cpu=True)
    with pytest.raises(Stopped, match=r"^stopped by SIGTERM at 48 images, which are saved"):
        trainers.train(settings, tmp_path, hooks=[noted], accelerator=here)
    assert noted.seen == [(24, True, False), (48, True, False)]
    state = checkpoint.read_state(checkpoint.newest(tmp_path / "checkpoints")[0])
    assert (state["images"], state["unfinished"]) == (48, ["Noted", "Checkpoints"])
    again = Noted(tmp_path, 24)
    trainers.resume(tmp_path, hooks=[again], accelerator=here)
    assert again.seen == [(48, True, True), (64, True, False)]  # the stop has saved 48
    hooks = hooks_of(build_session(settings), tmp_path, cast(Any, None), [noted])
    ours = [FiniteCheck, Evaluate, CompareSamples, Samples, Snapshots]
    assert [type(hook) for hook in hooks] == [*ours, Noted, Checkpoints]


@pytest.fixture
def session(teachers: Path) -> Session:
    return build_session(recipe(teachers / "edm"))


def test_samples_are_a_class_a_column_on_the_same_noise(session: Session, tmp_path: Path) -> None:
    noise, cond = preview_inputs(session)
    assert noise.shape == (60, 1, 8, 8) and cond.labels is not None
    assert cond.labels.reshape(6, 10).tolist() == [list(range(10))] * 6
    expected, _ = inputs(session.dataset, Random.at(session.run.seed, torch.arange(60)).stream("preview"))
    assert torch.equal(noise, expected)
    hook = Samples(tmp_path, 8)
    for images in (8, 16):
        session.state.images = images
        hook(session)
    first, second = (np.array(Image.open(tmp_path / "samples" / f"{i:012d}.png")) for i in (8, 16))
    assert np.array_equal(first, second)
    assert np.array_equal(first, np.array(grid(session.sampler(noise, cond), 10)))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("kind", ["generator", "teacher"])
def test_every_precision_trains_samples_and_evaluates(
    precision: str, kind: str, teachers: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"precision": precision, "images": 16, "evaluation": {"every": 16, "samples": 64}}
    settings = recipe(teachers / "edm", **changes) if kind == "generator" else teacher_recipe(**changes)
    session = fit_run(settings, tmp_path)
    (record,) = read(tmp_path / "metrics.jsonl")
    assert record["samples"] == 64 and record["frechet"] > 0
    assert (tmp_path / "samples" / f"{16:012d}.png").is_file()
    noise, cond = preview_inputs(session)
    product = load_trained(tmp_path)
    assert torch.equal(product.sampler(noise, cond), session.sampler(noise, cond))
    if product.teacher_sampler is not None:
        assert product.teacher_sampler(noise[:2], cond.rows(slice(2))).shape == (2, 1, 8, 8)


def test_the_best_is_kept(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """metrics.jsonl has every evaluation, best/ the weights of the smallest distance."""
    hook = Evaluate(tmp_path, Evaluation(every=8, samples=64))
    weight = next(iter(session.state.ema.module.parameters()))
    distances = [3.0, 1.0, 2.0]

    fixed = fit_protocol(session.source, hook.settings)
    monkeypatch.setattr(Protocol, "name", "fixed")
    monkeypatch.setattr(Protocol, "distance", lambda *_: distances.pop(0))
    hook.protocol = replace(fixed, halves=0.5, metrics=frozenset({"frechet"}))
    for images in (8, 16, 24):
        session.state.images = images
        with torch.no_grad():
            weight.fill_(images)
        hook(session)
    assert [(r["images"], r["frechet"]) for r in read(tmp_path / "metrics.jsonl")] == [(8, 3.0), (16, 1.0), (24, 2.0)]
    best = json.loads((tmp_path / "best/metrics.json").read_text())
    teacher = best.pop("teacher")
    assert teacher == session.teacher_hash
    assert best == {"images": 16, "frechet": 1.0, "protocol": "fixed", "samples": 64, "halves": 0.5}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "metrics.jsonl"]
    (tmp_path / "run.yaml").write_text("")
    from safetensors.torch import load_file

    assert (load_file(tmp_path / "best/ema.safetensors")["denoiser.network.unet.conv_in.weight"] == 16).all()


@dataclass
class Rank:
    """The accelerator of one rank of several; `others` is what each rank hands in, call by call."""

    process_index: int
    num_processes: int
    others: list[list[Tensor]]
    given: list[Tensor] = field(default_factory=list)
    device: torch.device = CPU

    def gather(self, tensor: Tensor) -> Tensor:
        self.given.append(tensor)
        return torch.cat([one[len(self.given) - 1] for one in self.others] or [tensor] * self.num_processes)


@pytest.mark.parametrize(("samples", "world"), [(64, 2), (7, 3), (10, 4), (4, 3), (2, 8)])
@pytest.mark.parametrize("metrics", [None, ("frechet", "precision", "recall", "label_agreement")])
def test_ranks_share_the_samples_of_an_evaluation(samples: int, world: int, metrics: tuple[Metric, ...] | None) -> None:
    """Any number of ranks evaluates the same samples."""
    settings = Evaluation(samples=samples, metrics=metrics if samples > 3 else None)
    protocol = fit_protocol(COPY, settings)

    def run(rank: Rank) -> dict[str, float | int | str]:
        return evaluate(nearest, COPY, protocol, settings, 0, cast(Accelerator, rank))

    alone = run(Rank(0, 1, []))
    assert alone["samples"] == samples
    ranks = [Rank(rank, world, []) for rank in range(world)]
    for rank in ranks:
        with suppress(NotMeasured):  # for what it hands in: alone it may have too few samples
            run(rank)
    for number in range(world):
        together = run(Rank(number, world, [rank.given for rank in ranks]))
        assert together.keys() == alone.keys() and together["protocol"] == alone["protocol"]
        for name in together.keys() - {"protocol"}:
            assert together[name] == pytest.approx(alone[name], rel=1e-9)


def test_samples_do_not_depend_on_the_chunk() -> None:
    whole, labels = draw_samples(nearest, COPY, torch.arange(600), 0)
    assert labels is not None and len(whole) == len(labels) == 600
    part, part_labels = draw_samples(nearest, COPY, torch.arange(300, 600), 0)
    assert part_labels is not None and torch.equal(part, whole[300:]) and torch.equal(part_labels, labels[300:])
    unlabelled: Dataset = replace(COPY, labels=None)
    assert draw_samples(lambda z, cond: z, unlabelled, torch.arange(3), 0)[1] is None


@pytest.mark.parametrize("world", [1, 2])
def test_an_evaluation_tells_how_many_samples_all_ranks_have_drawn(world: int) -> None:
    settings, told = Evaluation(samples=50, batch_size=10), list[int]()
    rank = cast(Accelerator, Rank(world - 1, world, []))
    with suppress(NotMeasured):  # the other rank's samples are not there
        evaluate(nearest, COPY, fit_protocol(COPY, settings), settings, 0, rank, tell=told.append)
    assert told == ([10, 20, 30, 40, 50] if world == 1 else [20, 40, 50])


def test_a_good_sampler_scores_well() -> None:
    protocol = fit_protocol(COPY, Evaluation())
    report = evaluate(nearest, COPY, protocol, Evaluation(samples=1000), 0, cast(Accelerator, Rank(0, 1, [])))
    assert float(report["frechet"]) < 4 * protocol.halves and report["label_agreement"] == pytest.approx(1, abs=0.01)


def test_without_images_there_is_nothing_to_compare_with() -> None:
    with pytest.raises(UserError, match="data: data_free has no images"):
        fit_protocol(DataFree((1, 8, 8), 10).load(), Evaluation())
