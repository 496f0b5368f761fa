"""The live view of a run: its lines, and the end of a log that it reads."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from tests.tiny import environment
from tests.trainers.reports.runs import line, write_lines, write_run
from trainers.io import jsonl
from trainers.reports.terminal import screen, sparkline


def shown(folder: Path) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(screen(folder))
    return console.export_text()


def test_a_view_has_the_newest_numbers(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "small", images=2000)
    log = [line(1000), line(2000, alarms=["the gap grows"], **{"fake/denoising": 9.25})]
    log[-1]["time"]["at"] = time.time() - 5
    write_lines(folder / "log.jsonl", log)
    text = shown(folder)
    for said in (
        "small: It trains, and has 2,000 of 4,000 images.",
        "16 images/s, 0:02:02 left, 0.50 GiB, last line 0:00:0",
        "frechet            3  █▁",
        "fake/denoising  9.25  █▁",
        "alarm at 2,000 images: the gap grows",
    ):
        assert said in text, text


def test_a_view_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("")
    assert "It has not trained" in shown(tmp_path) and "no line of a log yet" in shown(tmp_path)


def test_a_curve_goes_from_the_least_to_the_most() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7, 8]) == "▁▂▃▄▅▆▇██"
    assert sparkline([5, 5]) == "▁▁" and sparkline(range(100), width=4) == "▁▃▆█"


def test_the_end_of_a_log(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    assert jsonl.tail(file, 3) == []
    write_lines(file, [line(n) for n in range(1, 5001)])
    assert [one["images"] for one in jsonl.tail(file, 3)] == [4998, 4999, 5000]
    with file.open("a") as stream:
        stream.write('{"images": 50')
    assert [one["images"] for one in jsonl.tail(file, 3)] == [4998, 4999, 5000][-3:]
    assert len(jsonl.tail(file, 10_000)) == 5000


def test_ctrl_c_ends_the_view(tmp_path: Path) -> None:
    """In a terminal the view stays, and is drawn again."""
    folder, (ours, theirs) = write_run(tmp_path / "small"), pty.openpty()
    command = [sys.executable, "-m", "launch.main", "watch", str(folder), "--every", "0.2"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(TERM="xterm"))
    os.close(theirs)
    text = b""
    while b"4,000 images" not in text:
        text += os.read(ours, 4096)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
    os.close(ours)
