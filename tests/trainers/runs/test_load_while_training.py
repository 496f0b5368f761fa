"""A run is loaded while it trains: the checkpoint that was chosen is gone before it is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.errors import UserError
from tests.tiny import fit_run, once, recipe
from trainers.checkpoints import checkpoint
from trainers.runs.load import load_trained


@pytest.fixture
def run(shared: Path, teachers: Path, tmp_path: Path) -> Path:
    """A finished run with checkpoints at 8, 16 and 24 images, and best/."""

    def make(folder: Path) -> None:
        evaluation = {"every": 8, "samples": 16}
        settings = recipe(teachers / "edm", images=24, checkpoint_every=8, samples_every=24, evaluation=evaluation)
        fit_run(settings, folder)

    return Path(shutil.copytree(once(shared, "while_training", make), tmp_path / "run"))


def later(run: Path, images: int) -> Path:
    """Return the folder of a checkpoint."""
    return run / "checkpoints" / f"{images:012d}"


def before_first_call(function: Callable[..., Any], event: Callable[[], object]) -> Callable[..., Any]:
    """Return the function, before whose first call the event happens."""
    events = [event]

    def called(*arguments: Any, **options: Any) -> Any:
        if events:
            events.pop()()
        return function(*arguments, **options)

    return called


@pytest.mark.parametrize("step", ["load_average", "read_state", "flaw"])
def test_the_newest_is_taken_when_all_others_go(step: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.move(later(run, 24), run / "aside")

    def train_on() -> None:
        shutil.move(run / "aside", later(run, 24))
        for images in (0, 8, 16):
            shutil.rmtree(later(run, images), ignore_errors=True)

    monkeypatch.setattr(checkpoint, step, before_first_call(getattr(checkpoint, step), train_on))
    trained = load_trained(run)
    assert trained.images == 24
    monkeypatch.undo()
    wanted = load_trained(run).model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in trained.model.state_dict().items())


def test_best_is_read_again_when_it_is_replaced(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The description of the old best must not go with the weights of the new one."""
    file = run / "best" / "metrics.json"
    old = json.loads(file.read_text())

    def improve() -> None:
        file.write_text(json.dumps({**old, "images": 1_000}))

    monkeypatch.setattr(checkpoint, "load_average", before_first_call(checkpoint.load_average, improve))
    assert load_trained(run, "best").images == 1_000


def test_a_damaged_run_is_still_refused(run: Path) -> None:
    for file in (run / "checkpoints").glob("*/ema*"):
        file.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"^no valid checkpoint in '.*checkpoints'; skipped checkpoint '.*24': ema"):
        load_trained(run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match=r"^no valid checkpoint in '.*checkpoints'$"):
        load_trained(run)
