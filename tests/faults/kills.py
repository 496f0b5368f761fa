"""kill -9 at random moments: a run is killed and resumed until it is done, and must be the one that nobody touched."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.faults.victim import Trap, adopt_orphans, distill, launcher, seconds_until_gone
from tests.tiny import recipe
from tests.trainers.interrupted import contents, lines
from trainers.checkpoints import checkpoint
from trainers.io.jsonl import read
from trainers.io.lock import LOCK

Place = tuple[str, int, float | None]
EVERY = 24  # images between checkpoints, 12 updates
SETTINGS: dict[str, Any] = {
    "images": 120,
    "batch_size": 2,
    "log_every": 2,
    "samples_every": 48,
    "checkpoint_every": EVERY,
    "evaluation": {"every": 40, "samples": 100},
    "power_ema": {"stds": [0.1, 0.2], "snapshot_every": 32},
}

# Where a process dies: phase -> calls that begin it, (place, calls at most until then, seconds it may take; None: just
# before the call). With two processes it is the second that falls into the trap; then the first is killed too.
TRAINING: list[Place] = [("trainers.engine.player:Player.step", 48, 0.05), ("trainers.engine.step:make", 32, 0.05)]
SAVING: list[Place] = [
    ("trainers.checkpoints.saver:Saver._copy", 3, 0.02),
    ("trainers.checkpoints.saver:write_tensors", 12, None),
    ("trainers.checkpoints.saver:write_tensors", 12, 0.01),
    ("trainers.checkpoints.saver:sync", 24, None),
    ("trainers.checkpoints.saver:sync", 24, 0.01),
    ("trainers.checkpoints.saver:sha256", 16, None),
    ("trainers.checkpoints.saver:Saver._gathered", 6, None),
    ("trainers.checkpoints.saver:Saver._finish", 3, None),
    ("trainers.checkpoints.saver:Saver._finish", 3, 0.02),
    ("trainers.checkpoints.saver:os.rename", 3, None),
    ("trainers.checkpoints.saver:Saver._prune", 3, None),
    ("trainers.checkpoints.saver:shutil.rmtree", 2, None),
    ("trainers.checkpoints.saver:shutil.rmtree", 2, 0.001),
]
EVALUATING: list[Place] = [
    ("trainers.evaluation.measure:draw_samples", 1, 0.1),
    ("trainers.hooks.evaluate:fit_protocol", 1, 0.1),
    ("trainers.hooks.evaluate:Evaluate._write", 2, None),
    ("trainers.hooks.evaluate:Evaluate._write", 2, 0.01),
    ("trainers.hooks.evaluate:save_tensors", 1, 0.005),
    ("trainers.io.atomic:os.rename", 3, None),
    ("trainers.checkpoints.posthoc_ema:sync", 4, None),
    ("trainers.hooks.samples:grid", 1, 0.02),
]
RESUMING: list[Place] = [
    ("trainers.checkpoints.checkpoint:restore", 1, 0.05),
    ("trainers.loop:build_session", 1, 0.2),
    ("trainers.io.jsonl:os.replace", 2, None),
    ("trainers.io.jsonl:append", 6, None),
]
STARTING: list[Place] = [  # a launcher and its workers
    ("launch.processes:subprocess.Popen", 2, None),
    ("launch.processes:watch_workers", 1, 0.3),
    ("launch.main:follow_launcher", 1, 0.01),
    ("launch.commands.train:join_world", 1, 0.1),
    ("trainers.loop:build_session", 1, 0.1),
    ("trainers.loop:take_lock", 1, None),
]
EXPORTING: list[Place] = [
    ("distill.export.export:largest_difference", 1, None),
    ("distill.export.export:largest_difference", 1, 0.2),
    ("distill.export.export:_replace", 1, None),
    ("distill.export.export:os.rename", 2, None),
    ("trainers.runs.load:load_trained", 1, 0.3),
    ("distill.export.export:render", 1, 0.02),
]


@dataclass
class Tally:
    """What the kills of one row of the table did."""

    kills: int = 0
    runs: int = 0
    lost: list[int] = field(default_factory=list)  # images, at each kill
    gone: list[float] = field(default_factory=list)  # seconds after each kill until no process of the job was left
    where: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def count(self, place: str) -> None:
        """One more, as soon as nobody is left."""
        place = place.partition(":")[2] or place
        self.kills, self.where[place] = self.kills + 1, self.where.get(place, 0) + 1
        try:
            self.gone.append(seconds_until_gone())
        except AssertionError as error:
            self.failures.append(f"{place}: {error}")


def chosen(places: list[Place], seed: random.Random) -> Trap:
    place, calls, seconds = seed.choice(places)
    return Trap(place, seed.randint(1, calls), None if seconds is None else seed.uniform(0, seconds))


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders in it, and in the folder of all programs' temporary files."""
    hidden = [path for path in folder.rglob(".*") if path.name != LOCK]
    return [str(path.relative_to(folder)) for path in hidden] + os.listdir(tempfile.gettempdir())


def alone(folder: Path) -> None:
    """Give this process a folder of temporary files, and make it the parent of all orphans: nobody else leaves any."""
    adopt_orphans()
    folder.mkdir(parents=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def newest(folder: Path) -> int:
    """Images of the newest valid checkpoint; -1: none."""
    try:
        return int(checkpoint.newest(folder / "checkpoints")[0].name)
    except checkpoint.UserError:
        return -1


def differences(left: Path, right: Path, stopped: bool = False) -> Iterator[str]:
    """What two finished runs do not share to the bit. One that was `stopped` has saved at other moments."""
    last = f"{SETTINGS['images']:012d}"
    for name in (f"checkpoints/{last}", "samples", "best", "power_ema"):
        if contents(left / name) != contents(right / name) or not contents(left / name):
            yield name
    for name in ("log.jsonl", "metrics.jsonl"):
        if lines(left / name) != lines(right / name):
            yield name
    if names(left) != names(right) and not stopped:
        yield "checkpoints"
    yield from leftovers(right)


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoint.folders(folder / "checkpoints")]


def whole(settings: dict[str, Any], folder: Path, world: int) -> Path:
    """A run that nobody touches, made once."""
    run, file = folder / f"whole-{world}", folder / "recipe.yaml"
    if not run.exists():
        file.write_text(yaml.safe_dump(settings))
        output = folder / f"whole-{world}.txt"
        codes = distill(["train", str(file), "--folder", str(run)], output, world).wait()
        assert codes == [0] * world, output.read_text()
    return run


def note_lost(tally: Tally, run: Path, most: int) -> None:
    """Note the images that a run has logged beyond its newest checkpoint. Processes that end by themselves save all."""
    reached = max([record["images"] for record in read(run / "log.jsonl")], default=0)
    tally.lost.append(max(0, reached - max(newest(run), 0)))
    if tally.lost[-1] > most:
        tally.failures.append(f"{run.name}: {tally.lost[-1]} images lost")


def training_kills(
    teachers: Path,
    folder: Path,
    places: list[Place],
    world: int,
    kills: int,
    seed: int,
    launched: bool = False,
) -> Tally:
    """Kill runs at `places` until there were as many kills, each run until it is done.

    If they are `launched`, it is the launcher of the processes that dies, and no other process.
    """
    tally, choice = Tally(), random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    reference = whole(recipe(teachers / "edm", **SETTINGS), folder, world)
    while tally.kills < kills:
        run, tally.runs = folder / f"run-{seed}-{tally.runs}", tally.runs + 1
        for attempt in range(400):
            before, traps = newest(run), []
            if tally.kills < kills:
                traps = [chosen(places, choice)]
            arguments = ["train", str(folder / "recipe.yaml"), "--folder", str(run)]
            if before >= 0:
                arguments = ["resume", str(run)]
            elif (run / "log.jsonl").exists():
                tally.failures.append(f"{run.name}: trained without a checkpoint")
            output = run.with_suffix(".txt")
            if launched:
                codes = launcher(arguments, output, world, *traps or [None]).wait()
            else:
                codes = distill(arguments, output, world, traps).wait()
            if -9 in codes:
                tally.count(traps[0].place)
            after = newest(run)
            if -9 not in codes:
                if any(codes):
                    tally.failures.append(f"{run.name}, attempt {attempt}: {codes} {output.read_text()[-500:]}")
                break
            if after < before:
                tally.failures.append(f"{run.name}: had {before}, has {after} after {traps[0]}")
            note_lost(tally, run, 0 if launched else 2 * EVERY)
            if len(list((run / "checkpoints").glob(".staging-*"))) > 1:
                tally.failures.append(f"{run.name}: staging folders pile up")
        if newest(run) == SETTINGS["images"] and (wrong := list(differences(reference, run, launched))):
            tally.failures.append(f"{run.name} differs: {', '.join(wrong)}")
    return tally


def exporting_kills(teachers: Path, folder: Path, kills: int, seed: int) -> Tally:
    """Kill `distill export`: the folder is an export or not there, and the next call makes it."""
    tally, choice = Tally(), random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    run = whole(recipe(teachers / "edm", **SETTINGS), folder, 1)
    output, export = folder / "export.txt", run / "export"
    assert distill(["export", str(run)], output).wait() == [0], output.read_text()
    reference = contents(export)
    while tally.kills < kills:
        traps = [chosen(EXPORTING, choice)]
        codes = distill(["export", str(run)], output, 1, traps).wait()
        if codes == [-9]:
            tally.count(traps[0].place)
        elif codes != [0]:
            tally.failures.append(f"export: {codes} {output.read_text()[-500:]}")
        if export.exists() and contents(export) != reference:
            tally.failures.append(f"export: half an export after {traps[0]}")
        if len(leftovers(run)) > 1:
            tally.failures.append(f"export: {leftovers(run)} pile up")
    tally.runs = 1
    if distill(["export", str(run)], output).wait() != [0] or contents(export) != reference or leftovers(run):
        tally.failures.append(f"export: not the same at last, {leftovers(run)}")
    return tally
