"""Writes docs/results/faults.md: every kill and every other fault, what was asked of it, and what came of it."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.faults import disks, kills
from tests.faults.kills import Tally
from tests.faults.victim import warm
from tests.tiny import recipe, write_teachers

# phase, processes, share of the kills
ROWS: list[tuple[str, int, float]] = [
    ("training", 1, 0.14),
    ("saving", 1, 0.30),
    ("evaluating, pictures, snapshots", 1, 0.12),
    ("starting, resuming, logging", 1, 0.07),
    ("caching", 1, 0.10),
    ("exporting", 1, 0.09),
    ("training", 2, 0.05),
    ("saving", 2, 0.13),
]
PLACES = {
    "training": kills.TRAINING,
    "saving": kills.SAVING,
    "evaluating, pictures, snapshots": kills.EVALUATING,
    "starting, resuming, logging": kills.RESUMING,
}


def main() -> int:
    """Run everything in --work; the exit code is 1 when anything did not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="about as many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/faults"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/faults.md"))
    parser.add_argument("--at-once", type=int, default=4, help="rows of the table")
    parser.add_argument("--only", default="", help="rows whose names match this")
    given = parser.parse_args()
    rows = [(index, row) for index, row in enumerate(ROWS) if re.search(given.only, row[0])]
    faults = [(index, one) for index, one in enumerate(disks.FAULTS.items()) if re.search(given.only, one[0])]
    if not rows and not faults:
        parser.error(f"--only: no row's name matches {given.only!r}")
    started = time.monotonic()
    warm()
    shutil.rmtree(given.work, ignore_errors=True)
    work = given.work.resolve()
    work.mkdir(parents=True)
    write_teachers(work / "teachers")
    kills_folder = work / "kills"
    kills_folder.mkdir()
    for world in (1, 2):
        kills.whole(recipe(work / "teachers/edm", **kills.SETTINGS), kills_folder, world)
    tasks: dict[str, Callable[[], Any]] = {}
    for index, (phase, world, share) in sorted(rows, key=lambda row: -row[1][1] * row[1][2]):  # the long ones first
        count = max(1, round(share * given.kills + 0.49))
        tasks[f"{phase}|{world}"] = partial(kill, phase, world, count, given.seed * 100 + index, work)
    for index, (name, fault) in faults:
        tasks[name] = partial(attempt, fault, work, index)
    found: dict[str, Any] = {}
    for name, result in at_once(tasks, given.at_once, work):
        found[name] = result
        print(f"{name}: {result}", flush=True)
        done = [(row[0], row[1], found.get(f"{row[0]}|{row[1]}")) for _, row in rows]
        table = [(phase, world, Tally(**fields)) for phase, world, fields in done if fields is not None]
        other = [(name, found[name]) for _, (name, _) in faults if name in found]
        failed = [line for _, _, tally in table for line in tally.failures]
        failed += [text for _, text in other if text.startswith("FAILED")]
        given.out.parent.mkdir(parents=True, exist_ok=True)
        text = page(table, other, failed, given.seed, time.monotonic() - started)
        given.out.write_text(text.replace(str(work), "WORK"))
    return 1 if failed or len(found) < len(tasks) else 0


def at_once(tasks: dict[str, Callable[[], Any]], most: int, work: Path) -> Iterator[tuple[str, Any]]:
    """Every task in a forked process of its own, `most` at once; yields what they give, which JSON can hold."""
    running: dict[int, str] = {}
    left = list(tasks)
    while left or running:
        if left and len(running) < most:
            name = left.pop(0)
            if (pid := os.fork()) == 0:
                try:
                    (work / f"result-{os.getpid()}").write_text(json.dumps(tasks[name]()))
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            running[pid] = name
            continue
        pid, status = os.wait()
        name = running.pop(pid)
        if status == 0:
            yield name, json.loads((work / f"result-{pid}").read_text())


def kill(phase: str, world: int, count: int, seed: int, work: Path) -> dict[str, Any]:
    """The fields of a Tally."""
    if phase == "caching":
        return asdict(kills.caching_kills(work / "caching", count, seed))
    if phase == "exporting":
        return asdict(kills.exporting_kills(work / "teachers", work / "kills", count, seed))
    return asdict(kills.training_kills(work / "teachers", work / "kills", PLACES[phase], world, count, seed))


def attempt(fault: Callable[[Path, Path], str], work: Path, number: int) -> str:
    """What came of a fault, in words."""
    folder = work / f"fault-{number}"
    folder.mkdir()
    try:
        return fault(work / "teachers", folder)
    except Exception as error:
        return f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:800]}"


def page(
    table: list[tuple[str, int, Tally]], other: list[tuple[str, str]], failed: list[str], seed: int, seconds: float
) -> str:
    total = sum(tally.kills for _, _, tally in table)
    lines = [
        "# Faults",
        "",
        f"Written by `make test-faults` (seed {seed}, torch {torch.__version__}, {seconds / 60:.0f} minutes). Processes"
        " are forked from a process that has imported everything, and run the `distill` command.",
        "",
        f"## {total} times kill -9",
        "",
        "A process kills itself before a call, or a random time after a call began, from another thread. With two"
        " processes the other one is killed then too. The run is started again (`distill resume`, `distill cache`,"
        " `distill export`) and killed again, until it is done.",
        "",
        "Then everything must be as in a run that nobody touched, to the bit: the last checkpoint with all its files"
        " (weights, optimizers, averages), `log.jsonl` but for times, `metrics.jsonl`, `best/`, snapshots, pictures,"
        " and the names of the checkpoints that are kept. No temporary file may be left.",
        "",
        f"A run saves every {kills.EVERY} images (12 updates, a few tenths of a second). *Lost* is what was trained and"
        " logged beyond the newest valid checkpoint at the moment of the kill. It is at most an interval and what was"
        " trained beside the save in progress, and never more than two intervals, since the next save waits.",
        "",
        "| killed while | processes | kills | runs | went on | bit for bit | lost, median | lost, most |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for phase, world, tally in table:
        good = "all" if not tally.failures else f"{len(tally.failures)} not"
        lost = sorted(tally.lost)
        numbers = f"{lost[len(lost) // 2]} | {lost[-1]}" if lost else "- | -"
        lines.append(f"| {phase} | {world} | {tally.kills} | {tally.runs} | {good} | {good} | {numbers} |")
    lines += ["", "Where they died:", ""]
    for phase, world, tally in table:
        where = ", ".join(f"`{place}` {count}" for place, count in sorted(tally.where.items()))
        lines.append(f"- {phase}, {world}: {where}")
    lines += ["", "## Other faults", "", "| fault | what came of it |", "| --- | --- |"]
    lines += [f"| {name} | {text} |" for name, text in other]
    if failed:
        lines += ["", "## What did not hold", "", *(f"- {' '.join(line.split())[:800]}" for line in failed)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
