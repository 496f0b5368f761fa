"""Resident bytes of a process while it trains: a program, `resident.py CASE UPDATES FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console

from tests.tiny import build_session, distillation, experiment
from trainers.engine.session import Session
from trainers.engine.step import advance
from trainers.hooks import Hook, Log
from trainers.hooks.hook import call_due
from trainers.recipe.load import resolve
from trainers.recipe.run import Run
from trainers.recipe.teacher_run import TeacherRun

EVERY = 100  # updates


class Resident(Hook):
    """Notes the resident bytes."""

    def __init__(self, every: int) -> None:
        self.every, self.seen = every, list[int]()

    def __call__(self, session: Session) -> None:
        lines = Path("/proc/self/status").read_text().splitlines()
        self.seen += [1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:")]


def run_of(case: str, updates: int, folder: Path) -> Run | TeacherRun:
    """`digits` has real images, labels and pairs in memory; `cached` embeddings and latents that a cache maps."""
    if case == "cached":
        length = [f"images={4 * updates}", f"log_every={4 * EVERY}", "fake_updates=1"]
        return resolve("sdxl_dmd2", length, tiny=folder / "run")
    return experiment(distillation(case, folder, images=8 * updates, log_every=8 * EVERY))


def main() -> None:
    """Print the resident bytes, as a list, every EVERY updates."""
    run = run_of(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    session = build_session(run)
    log, resident = Log(Path(sys.argv[3]), run.log_every, Console(quiet=True)), Resident(EVERY * run.batch_size)
    log.start(session)
    while session.state.images < run.images:
        before = session.state.images
        advance(session)
        call_due(session, [log, resident], before)
    log.stop()
    print(json.dumps(resident.seen))


if __name__ == "__main__":
    main()
