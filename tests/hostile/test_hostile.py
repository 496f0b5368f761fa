"""A handful of hostile inputs of every reader, and that the suite finds what it looks for: see `make test-hostile`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile import trial
from tests.hostile.mutate import damaged, damaged_json
from tests.hostile.trial import Call, Outcome, Place, Trial
from tests.tiny import ROOT, environment

RIGHT = "print('distill: refused', file=sys.stderr); sys.exit(2)"
EVIL: dict[str, tuple[str, str]] = {  # what a command could do -> its program, and the fault that it is
    "raises": ("raise ValueError('x')", "traceback"),
    "dies": ("os.kill(os.getpid(), 9)", "crash"),
    "ends otherwise": ("sys.exit(3)", "end"),
    "says nothing": ("sys.exit(2)", "end"),
    "says two lines": (f"print('distill: a', file=sys.stderr); {RIGHT}", "end"),
    "says too much": ("print('distill: ' + 'x' * 3000, file=sys.stderr); sys.exit(2)", "end"),
    "runs code": (f"open('../guard/canary', 'w').close(); {RIGHT}", "code"),
    "writes at home": (f"open(os.path.expanduser('~/x'), 'w').close(); {RIGHT}", "outside"),
    "leaves a temporary file": (f"tempfile.mkstemp(); {RIGHT}", "outside"),
    "changes its input": (f"open('../in/x', 'w').close(); {RIGHT}", "outside"),
    "removes a valid file": (f"os.remove('../../valid/x'); {RIGHT}", "outside"),
    "leaves a process": (f"subprocess.Popen(['sleep', '100'], start_new_session=True); {RIGHT}", "left"),
    "takes too much": ("x = b'x' * 7 * 10**8; time.sleep(0.5)", "memory"),
    "takes too long": ("time.sleep(100)", "time"),
}


def end_of(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """Return what the suite finds when the command is a program."""
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid/x").touch()
    names = {"os": os, "sys": sys, "subprocess": subprocess, "time": time, "tempfile": trial.tempfile}
    monkeypatch.setattr("launch.main.main", lambda: exec(program, names))
    place = Place(tmp_path / "trial", tmp_path / "valid")
    one = Trial("x", lambda draw, place: Call(["sample"], [], "x"), "0", place)
    while (found := one.poll()) is None:
        time.sleep(0.01)
    return found


@pytest.mark.parametrize("what", EVIL)
def test_a_broken_promise_is_found(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if EVIL[what][1] == "time":
        monkeypatch.setattr(trial, "SECONDS", 2.0)
    if EVIL[what][1] == "memory":  # the process of the tests has some hundred megabytes, of which a child maps a part
        monkeypatch.setattr(trial, "MEMORY", trial.resident(os.getpid()) + 2 * 10**8)
    assert list(end_of(EVIL[what][0], tmp_path, monkeypatch).faults) == [EVIL[what][1]]


@pytest.mark.parametrize(("program", "accepted"), [(RIGHT, False), ("open('../out/x', 'w').close()", True)])
def test_a_good_end_is_none(program: str, accepted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = end_of(program, tmp_path, monkeypatch)
    assert not found.faults and found.accepted is accepted and found.memory > 2**24


@pytest.mark.parametrize(("damage", "content"), [(damaged, b"x" * 50), (damaged_json, b'{"a": [1, {"b": 2}]}')])
def test_a_seed_makes_one_input(damage: Callable[..., tuple[bytes, str]], content: bytes) -> None:
    made = [[damage(content, trial.random.Random(seed)) for seed in range(60)] for _ in range(2)]
    assert made[0] == made[1] and len({content for content, _ in made[0]}) > 30


def test_every_reader_keeps_the_promises(tmp_path: Path) -> None:
    """Two inputs of every reader. The table counts them all, and no promise is broken."""
    options = ["--count", "2", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "page.md")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile", *options], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [
        line.split(" | ")
        for line in (tmp_path / "page.md").read_text().splitlines()
        if re.match(r"\| [\w ]+ \| 2 ", line)
    ]
    assert len(rows) == 15
    for row in rows:
        assert int(row[2]) + int(row[3]) == 2 and row[4:12] == ["0"] * 8
