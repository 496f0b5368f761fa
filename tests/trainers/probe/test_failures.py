"""Failures of teachers made elsewhere, at tiny size: with the rules of the probe they do not happen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.teachers import load_denoiser
from tests.tiny import build_session, experiment, fit_run, once, recipe, teacher_recipe
from trainers.data import Digits
from trainers.engine.meter import Meter
from trainers.engine.pace import ratios
from trainers.engine.session import Session
from trainers.engine.step import advance
from trainers.probe import rules
from trainers.probe.levels import error_by_level, spread
from trainers.probe.subject import Subject
from trainers.recipe.run import Run


@pytest.fixture(scope="module")
def noise_teacher(shared: Path) -> Path:
    """A teacher of the digits that predicts noise, trained for a few seconds."""

    def train(folder: Path) -> None:
        settings = teacher_recipe(images=25_600, batch_size=64, path="vp", prediction="eps", weight="eps")
        settings |= {"optimizer": {"lr": 4e-3, "warmup": 1_280, "decay": "cosine"}, "ema": {"half_life": 2_000}}
        settings |= dict.fromkeys(("log_every", "samples_every", "checkpoint_every"), 25600)
        fit_run(settings, folder / "run")

    return once(shared, "noise_teacher", train) / "run" / "teacher"


def ratios_of(session: Session) -> dict[str, float]:
    """The fake's error over the teacher's by noise level, on new samples of the generator at the generator's times."""
    run, nets, meter = session.run, session.nets, Meter()
    assert isinstance(run, Run) and nets is not None
    for number in range(32):
        batch = session.batches.micro("judge", number * run.batch_size, 0)
        with torch.no_grad():
            x = session.state.players["generator"].bare(batch.noise, batch.cond)
            run.objective.generator_loss(replace(nets, note=meter.note), x, batch)
    fake, teacher = (meter.totals[f"health/{name}"] for name in ("fake_error", "teacher_error"))
    return ratios(fake, teacher, share=0.01)


def warmed_up(teacher: Path, fake: dict[str, Any], objective: dict[str, Any]) -> Session:
    """A distillation after its warm-up."""
    warmup = {"until": 1.2, "most": 6_400}
    session = build_session(
        recipe(teacher, images=12_800, batch_size=64, objective=objective, fake=fake, fake_warmup=warmup)
    )
    assert session.state.pace is not None
    while session.state.pace.waits:
        advance(session)
    return session


def test_the_fake_of_a_network_of_noise_knows_all_levels_after_its_warm_up(noise_teacher: Path) -> None:
    denoiser = load_denoiser(noise_teacher).requires_grad_(False)
    run = experiment(recipe(noise_teacher))
    assert isinstance(run, Run)
    subject = Subject(run, denoiser, denoiser, Digits().load(), torch.device("cpu"), 10.0)
    reference = subject.reference(512)
    levels = error_by_level(subject, reference)
    law, _ = rules.times(levels, spread(subject, reference, levels))
    table, _ = rules.weight(levels)
    times = {"name": "lognormal", "mean": law.mean, "std": law.std}
    weight = {"nsr": list(table.nsr), "weight": list(table.weight)}
    ruled = {"name": "sim", "times": times, "fake_times": times, "fake_weight": weight}
    session = warmed_up(noise_teacher, {"lr": 3e-4}, ruled)
    assert session.state.images < 6_400 and max(ratios_of(session).values()) < 1.2
    # Ten times the rate, at EDM's times and with the network's own weight: the fake loses what it knew of high noise,
    # and the warm-up goes on until it knows it again.
    published = {"name": "sim", "times": times, "fake_weight": "eps", "fake_times": {"name": "lognormal"}}
    assert warmed_up(noise_teacher, {"lr": 6e-3}, published).state.images > session.state.images
