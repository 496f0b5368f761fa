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

from tests.faults import caches, disks, kills, launchers
from tests.faults.kills import Tally
from tests.faults.victim import GONE_SECONDS, warm
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
    ("the launcher alone, starting", 2, 0.04),
    ("the launcher alone, caching", 2, 0.04),
    ("the launcher alone, training", 2, 0.04),
    ("the launcher alone, saving", 2, 0.06),
    ("the launcher alone, evaluating, pictures, snapshots", 2, 0.04),
    ("the launcher alone, importing", 2, 0.03),
    ("the whole job, importing", 1, 0.02),
    ("the whole job, importing", 2, 0.02),
    ("a program that calls `trainers.train(processes=2)`", 2, 0.05),
    ("two commands at once, caching", 1, 0.06),
]
PLACES = {
    "training": kills.TRAINING,
    "saving": kills.SAVING,
    "evaluating, pictures, snapshots": kills.EVALUATING,
    "starting, resuming, logging": kills.RESUMING,
    "starting": kills.STARTING,
}
REAL = {
    ("the launcher alone, importing", 2): launchers.LAUNCHER,
    ("the whole job, importing", 1): launchers.JOB_OF_ONE,
    ("the whole job, importing", 2): launchers.JOB_OF_TWO,
    ("a program that calls `trainers.train(processes=2)`", 2): launchers.PROGRAMS,
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
    found, failed = dict[str, Any](), list[str]()
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


def kill(row: str, world: int, count: int, seed: int, work: Path) -> dict[str, Any]:
    """The fields of a Tally."""
    kills.alone(work / f"temporary-{seed}")
    teachers, folder = work / "teachers", work / "kills"
    launched, phase = row.startswith("the launcher alone"), row.removeprefix("the launcher alone, ")
    if moments := REAL.get((row, world)):
        tally = launchers.real_kills(teachers, folder, moments, world, count, seed, program="program" in row)
    elif phase == "caching":
        tally = caches.caching_kills(work / f"caching-{seed}", count, seed, world)
    elif phase == "two commands at once, caching":
        tally = caches.two_at_once(work / f"caching-{seed}", count, seed)
    elif phase == "exporting":
        tally = kills.exporting_kills(teachers, folder, count, seed)
    else:
        tally = kills.training_kills(teachers, folder, PLACES[phase], world, count, seed, launched)
    return asdict(tally)


def attempt(fault: Callable[[Path, Path], str], work: Path, number: int) -> str:
    """What came of a fault, in words."""
    folder = work / f"fault-{number}"
    folder.mkdir()
    kills.alone(work / f"temporary-fault-{number}")
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
        "*The launcher alone* is the command that started two workers. It dies at such a moment of itself or of a"
        " worker, and each worker has a child, as if it loaded data. With one process the command is the launcher. Jobs"
        " that import, and programs, are processes of their own, and die before a random import, write or rename. Of"
        " two commands that fill one cache of embeddings, latents and pictures at once, none, one or both are killed.",
        "",
        "Then everything must be as in a run that nobody touched, to the bit: the last checkpoint with all its files"
        " (weights, optimizers, averages), `log.jsonl` but for times, `metrics.jsonl`, `best/`, snapshots, pictures,"
        " and the names of the checkpoints that are kept (a run that its launcher left saves once more). All files of a"
        " cache must be the same. Half-written files lie beside their places until the next start. Then no temporary"
        " file may be left, neither there nor in the system's folder. *Left* is the longest time until all processes of"
        f" a job were gone. More than {GONE_SECONDS:.0f} s is a failure.",
        "",
        f"A run saves every {kills.EVERY} images (12 updates, a few tenths of a second). *Lost* is what was trained and"
        " logged beyond the newest valid checkpoint at the moment of the kill. It is at most an interval and what was"
        " trained beside the save in progress, and never more than two intervals, since the next save waits.",
        "",
        "| killed while | processes | kills | runs | went on | bit for bit | lost, median | lost, most | left |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for phase, world, tally in table:
        good = "all" if not tally.failures else f"{len(tally.failures)} not"
        lost = sorted(tally.lost)
        numbers = f"{lost[len(lost) // 2]} | {lost[-1]}" if lost else "- | -"
        gone = f"{max(tally.gone, default=0):.1f} s"
        lines.append(f"| {phase} | {world} | {tally.kills} | {tally.runs} | {good} | {good} | {numbers} | {gone} |")
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
