"""Writes docs/results/faults.md: every kill and every other fault, what was asked of it, and what came of it."""

from __future__ import annotations

import argparse
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.faults import disks, kills
from tests.faults.kills import Tally
from tests.faults.victim import warm
from tests.tiny import write_teachers

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
    parser.add_argument("--only", default="", help="rows whose names match this")
    given = parser.parse_args()
    started = time.monotonic()
    warm()
    shutil.rmtree(given.work, ignore_errors=True)
    work = given.work.resolve()
    work.mkdir(parents=True)
    write_teachers(work / "teachers")
    table = []
    for index, (phase, world, share) in enumerate(ROWS):
        if re.match(given.only, phase):
            count, seed = max(1, round(share * given.kills + 0.49)), given.seed * 100 + index
            tally = kill(phase, world, count, seed, work)
            table.append((phase, world, tally))
            print(f"{phase}, {world}: {tally}", flush=True)
    other = []
    for name, fault in disks.FAULTS.items():
        if re.match(given.only, name):
            other.append((name, attempt(fault, work, len(other))))
            print(f"{name}: {other[-1][1]}", flush=True)
    failed = [line for _, _, tally in table for line in tally.failures] + [
        t for _, t in other if t.startswith("FAILED")
    ]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(page(table, other, failed, given.seed, time.monotonic() - started))
    return 1 if failed else 0


def kill(phase: str, world: int, count: int, seed: int, work: Path) -> Tally:
    if phase == "caching":
        return kills.caching_kills(work / "caching", count, seed)
    if phase == "exporting":
        return kills.exporting_kills(work / "teachers", work / "kills", count, seed)
    return kills.training_kills(work / "teachers", work / "kills", PLACES[phase], world, count, seed)


def attempt(fault: Callable[[Path, Path], str], work: Path, number: int) -> str:
    """What came of a fault, in words."""
    folder = work / f"fault-{number}"
    folder.mkdir()
    (work / "kills").mkdir(exist_ok=True)
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
        " are forked from one that has imported everything, and run the `distill` command.",
        "",
        f"## {total} times kill -9",
        "",
        "A process kills itself before a call, or a random time after a call began, from another thread; with two"
        " processes the other one is killed then too. The run is started again (`distill resume`, `distill cache`,"
        " `distill export`) and killed again, until it is done. Then everything must be as in a run that nobody"
        " touched: the last checkpoint with all its files (weights, optimizers, averages), `log.jsonl` but for times,"
        " `metrics.jsonl`, `best/`, snapshots, pictures, the names of the checkpoints that are kept, to the bit; no"
        f" temporary file is left. A run of these saves every {kills.EVERY} images (3 updates): *lost* is what was"
        " trained and logged beyond the newest valid checkpoint at the moment of the kill. More than an interval is"
        " possible where a save takes longer than one, as these do: the next one waits for it, so it is less than two.",
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
