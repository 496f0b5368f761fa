"""Writes docs/results/hostile.md: hostile inputs by reader, and what came of them."""

from __future__ import annotations

import argparse
import gc
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.hostile import trial
from tests.hostile.trial import Outcome, Place, Reader, Trial, fork

FAULTS = {
    "traceback": "tracebacks",
    "crash": "crashes",
    "end": "other ends",
    "code": "code run",
    "outside": "files outside",
    "left": "processes left",
    "memory": "over 2 GB",
    "time": "over a minute",
}
AT_ONCE = 2


@dataclass
class Tally:
    """The outcomes of the inputs of one reader."""

    accepted: int = 0
    refused: int = 0
    faults: dict[str, list[str]] = field(default_factory=dict)
    memory: int = 0
    seconds: float = 0.0

    def add(self, name: str, what: str, outcome: Outcome) -> None:
        """Count an outcome."""
        self.accepted += outcome.accepted
        self.refused += not outcome.accepted
        self.memory, self.seconds = max(self.memory, outcome.memory), max(self.seconds, outcome.seconds)
        for kind, words in outcome.faults.items():
            self.faults.setdefault(kind, []).append(f"{name} ({what:.200}): {kind}: {words}")


def main() -> int:
    """Try every reader with inputs of many seeds. The exit code is 1 if any promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="inputs of each reader")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--only", default="", help="readers whose names match this")
    parser.add_argument("--work", type=Path, default=Path("runs/hostile"))
    parser.add_argument("--out", type=Path, help="the page to write")
    given = parser.parse_args()
    work = given.work.resolve()
    prepare(work)
    readers = {name: reader for name, reader in all_readers().items() if re.search(given.only, name)}
    if not readers:
        parser.error(f"--only: no reader's name matches {given.only!r}")
    tallies, started = {name: Tally() for name in readers}, time.monotonic()
    jobs = ((name, readers[name], seed) for seed in range(given.seed, given.seed + given.count) for name in readers)
    for done, (name, seed, what, outcome) in enumerate(outcomes(jobs, work), start=1):
        tallies[name].add(f"{name} {seed}", what, outcome)
        for kind, words in outcome.faults.items():
            print(f"{name} {seed}: {kind}: {words}   [{what}]", flush=True)
        if given.out is not None and (done % 50 == 0 or done == given.count * len(readers)):
            text = page(tallies, given.count, given.seed, time.monotonic() - started)
            given.out.write_text(text.replace(str(work), "WORK"), errors="backslashreplace")
    return int(any(tally.faults for tally in tallies.values()))


def prepare(work: Path) -> None:
    """Import everything, and write the valid files in a process that ends, so that this one never computes."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    trial.warm()
    gc.freeze()
    from tests.hostile import valid

    if os.waitpid(fork(lambda: valid.write_valid(work / "valid"), work / "valid.txt"), 0)[1]:
        raise SystemExit(f"the valid files were not written: {(work / 'valid.txt').read_text()}")


def all_readers() -> dict[str, Reader]:
    """Return the readers by name."""
    from tests.hostile import pickles, pictures, prompts, recipes, references, tars, trees, weights

    modules = (recipes, trees, pickles, pictures, tars, references, weights, prompts)
    return {name: reader for module in modules for name, reader in module.READERS.items()}


def outcomes(jobs: Iterator[tuple[str, Reader, int]], work: Path) -> Iterator[tuple[str, int, str, Outcome]]:
    """Try inputs, a few at once, and yield (reader, seed, input in words, outcome). Faulty inputs stay in `work`."""
    running: dict[tuple[str, int], Trial] = {}
    job = next(jobs, None)
    while job or running:
        if job and len(running) < AT_ONCE:
            name, reader, seed = job
            root = work / f"{name.replace(' ', '-')}-{seed}"
            running[name, seed] = Trial(f"{name} {seed}", reader, f"{name} {seed}", Place(root, work / "valid"))
            job = next(jobs, None)
            continue
        for (name, seed), one in list(running.items()):
            if (outcome := one.poll()) is not None:
                del running[name, seed]
                if not outcome.faults:
                    shutil.rmtree(one.place.root)
                yield name, seed, one.call.what, outcome
        time.sleep(0.003)


def page(tallies: dict[str, Tally], count: int, seed: int, seconds: float) -> str:
    """Return the table of all readers as Markdown, and the broken promises."""
    import torch

    total = sum(tally.accepted + tally.refused for tally in tallies.values())
    lines = [
        "# Hostile inputs",
        "",
        f"Written by `python -m tests.hostile --count {count} --seed {seed}` (torch {torch.__version__},"
        f" {seconds / 60:.0f} minutes): {total:,} inputs that are damaged, hostile or merely unusual."
        " Each is made from its seed, and given to the"
        " `distill` command in a process of its own.",
        "",
        "An input is *accepted* if the command did what it was asked to, and *refused* if it ended with one line that"
        " says why (exit code 1 or 2). The other columns count broken promises. *Code run* is any code that a file"
        " brings or names: each writes a file that must not be there afterwards. *Files outside* are files that are"
        " new, changed or gone anywhere but in the folders that the command was told to fill, such as temporary files"
        " and files in the home. Memory is the largest resident size of the process, which has imported everything.",
        "",
        f"| reader | inputs | refused | accepted | {' | '.join(FAULTS.values())} | largest memory | longest time |",
        "| --- " * (6 + len(FAULTS)) + "|",
    ]
    for name, tally in tallies.items():
        counts = " | ".join(str(len(tally.faults.get(kind, []))) for kind in FAULTS)
        ends = f"{tally.accepted + tally.refused} | {tally.refused} | {tally.accepted}"
        lines.append(f"| {name} | {ends} | {counts} | {tally.memory / 2**20:,.0f} MB | {tally.seconds:.1f} s |")
    broken = [line for tally in tallies.values() for found in tally.faults.values() for line in found]
    if broken:
        lines += ["", "## Promises that were broken", "", *(f"- {' '.join(line.split())[:600]}" for line in broken)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    if "DISTILL_HOSTILE_STARTED" not in os.environ:  # the variables count before torch is imported
        work = Path(sys.argv[sys.argv.index("--work") + 1] if "--work" in sys.argv else "runs/hostile").resolve()
        os.environ |= {"DISTILL_HOSTILE_STARTED": "1", "HF_HOME": f"{work}-hub", "MPLCONFIGDIR": f"{work}-hub"}
        os.execv(sys.executable, [sys.executable, "-m", "tests.hostile", *sys.argv[1:]])
    raise SystemExit(main())
