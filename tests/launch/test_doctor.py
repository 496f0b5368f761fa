"""`distill doctor` says what is, and what is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launch import checks
from launch.main import app

LINES = ["versions", "devices", "disk", "clock", "processes", "wandb"]


def ask(folder: Path) -> tuple[int, dict[str, str]]:
    """Exit code and {check: its line}."""
    result = CliRunner().invoke(app, ["doctor", "--folder", str(folder)], env={"COLUMNS": "400"})
    return result.exit_code, {line[7:27].strip(): line for line in result.output.splitlines()}


def means(line: str) -> dict[str, float]:
    """The losses and norms at the end of a line on two steps."""
    return {name: float(value) for name, value in (part.split() for part in line.split(", ") if "/" in part)}


def test_a_machine_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "MIN_FREE_BYTES", 0)
    code, lines = ask(tmp_path / "runs")
    assert code == 0, lines
    assert [*LINES, *(f"two steps, {p}" for p in checks.PRECISIONS)] == [n for n in lines if lines[n].startswith("ok")]
    assert "gloo, two processes" in lines["processes"]
    single, half, double = (means(lines[f"two steps, {precision}"]) for precision in checks.PRECISIONS)
    assert list(single) == ["fake/denoising", "fake/grad_norm", "generator/grad_norm", "generator/sid"]
    assert double == pytest.approx(single, rel=1e-3) and half == pytest.approx(single, rel=0.05)
    assert not list((tmp_path / "runs").iterdir())


def test_what_is_wrong_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for check in ("round_trip", "two_steps"):
        monkeypatch.setattr(checks, check, lambda *_: "")
    monkeypatch.setattr(checks, "MIN_FREE_BYTES", 2**60)
    file = tmp_path / "file"
    file.touch()
    code, lines = ask(tmp_path)
    assert code == 1 and "make room, or name another with --folder" in lines["disk"]
    code, lines = ask(file / "runs")
    assert code == 1 and "WRONG" in lines["disk"] and "cannot write to" in lines["disk"]
    monkeypatch.setattr(checks, "MIN_FREE_BYTES", 0)
    os.utime(tmp_path)
    monkeypatch.setattr(checks.time, "time", lambda: 0.0)
    assert "synchronise them (NTP)" in ask(tmp_path)[1]["clock"]


def test_wandb_is_asked_without_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert "not logged in" in checks.wandb_login()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    assert checks.wandb_login().endswith("ready") and "secret" not in checks.wandb_login()
