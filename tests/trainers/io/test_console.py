"""The progress of a slow command: in place on a terminal, and rare lines in a file."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from trainers.io import console
from trainers.io.console import progress


def test_a_file_gets_a_line_a_minute(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    seconds = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: seconds[0])
    with progress() as say:
        for seconds[0] in (1, 59, 61, 62, 120, 130):
            say(f"step at {seconds[0]}")
    assert capfd.readouterr() == ("", "step at 61\nstep at 130\n")


def test_a_terminal_shows_the_step_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shown leaves no line behind."""
    shown = io.StringIO()

    def terminal(**settings: Any) -> Console:
        assert settings == {"stderr": True, "quiet": False}
        return Console(file=shown, force_terminal=True, width=80)

    monkeypatch.setattr(console, "plain", terminal)
    with progress() as say:
        say("first")
        say("second")
    assert "second" in shown.getvalue() and shown.getvalue().endswith("\x1b[2K")
