"""Runs that are interrupted and resumed, and the comparison of what they leave."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import fit_run
from trainers import loop
from trainers.checkpoints import checkpoint
from trainers.engine.session import Session
from trainers.hooks import Hook


class Cut(Exception):
    """The end of the process, as far as a test in one process can have it."""


class Interrupt(Hook):
    def __init__(self, at: int) -> None:
        self.every, self.at = 1, at

    def due(self, before: int, now: int, total: int) -> bool:
        return now >= self.at

    def __call__(self, session: Session) -> None:
        raise Cut


def fit(settings: dict[str, Any], folder: Path, resume: bool = False) -> Session:
    """Train as a fresh process would: nothing depends on what torch's global generator holds."""
    torch.manual_seed(hash((folder, resume)) % 2**31)
    return fit_run(settings, folder, resume)


def interrupted(settings: dict[str, Any], folder: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until `at` images and stop there without a word."""
    with monkeypatch.context() as patch:
        hooks_of = loop.hooks_of
        patch.setattr(loop, "hooks_of", lambda *arguments: [*hooks_of(*arguments), Interrupt(at)])
        with pytest.raises(Cut):
            fit(settings, folder)


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def lines(file: Path) -> list[str]:
    """The lines of a log without their time."""
    records = [json.loads(line) for line in file.read_text().splitlines()]
    return [json.dumps({key: value for key, value in record.items() if key != "time"}) for record in records]


def assert_same(left: Path, right: Path) -> None:
    """Two run folders hold the same training, to the bit."""
    last = checkpoint.folders(left / "checkpoints")[0].name
    ours, theirs = contents(left / "checkpoints" / last), contents(right / "checkpoints" / last)
    assert {"state.json", "meter", "manifest.json", "ema"} <= {
        name.split(".safetensors")[0].split("-0")[0] for name in ours
    }
    assert theirs == ours
    assert lines(right / "log.jsonl") == lines(left / "log.jsonl")
    for name in ("samples", "teacher", "power_ema"):
        assert contents(right / name) == contents(left / name)
    assert contents(left / "samples")
    assert not list((right / "checkpoints").glob(".staging-*"))
    assert [p.name for p in checkpoint.folders(right / "checkpoints")] == [
        p.name for p in checkpoint.folders(left / "checkpoints")
    ]
