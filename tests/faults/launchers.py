"""kill -9 of launchers and of jobs that import: real processes, killed at an audit event of the interpreter."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tests.faults.kills import EVERY, SETTINGS, Tally, differences, newest, note_lost, whole
from tests.faults.victim import distill
from tests.tiny import ROOT, launch, recipe

# In every process of the job, before anything else: the process whose role it is kills at the event.
HOOK = """
import json, os, signal, sys
fault = json.loads(os.environ["FAULT"])
role = os.environ.get("RANK") or ("command" if "DISTILL_LAUNCHER" in os.environ else "first")
count = 0

def note(event, arguments):
    global count
    if event != fault["event"] or fault["part"] not in str(arguments[0]):
        return
    count += 1
    if count != fault["number"]:
        return
    victim = os.getpid()
    for _ in range(fault["up"]):
        victim = int(open(f"/proc/{victim}/stat").read().rpartition(")")[2].split()[1])
    victims = [victim]
    if fault["whole"]:
        victims += map(int, open(f"/proc/{victim}/task/{victim}/children").read().split())
    for one in sorted(victims, key=os.getpid().__eq__):  # itself last
        os.kill(one, signal.SIGKILL)

if role == fault["role"]:
    sys.addaudithook(note)
"""
PROGRAM = """
import sys
import trainers

if __name__ == "__main__":
    call, first, *folder = sys.argv[1:]
    getattr(trainers, call)(first, *folder, processes=2, oversubscribe=True)
"""


@dataclass(frozen=True)
class Moment:
    """The `number`-th audit event of a kind in the process of a role, and the victim.

    Attributes:
        role: "first", the process that is started; "command", which a program starts; or the rank of a worker.
        event: The name of the event, as in Python's table of audit events.
        part: A part of the event's first argument.
        number: The number of such events until then; where it is listed below, the most.
        up: The generations from the process of the role up to the one that is killed.
        whole: Whether the children of the latter are killed too.
    """

    role: str
    event: str
    part: str
    number: int
    up: int = 0
    whole: bool = False

    @property
    def who(self) -> str:
        """The process of the role, in words."""
        return {"first": "the first process", "command": "the command"}.get(self.role, "a worker")


LAUNCHER = [Moment("first", "import", "", 1500), Moment("0", "import", "", 1800, 1), Moment("1", "import", "", 1800, 1)]
JOB_OF_ONE = [Moment("first", "import", "", 1800)]
JOB_OF_TWO = [Moment("first", "import", "", 1500), Moment("1", "import", "", 1800, 1, whole=True)]
PROGRAMS = [
    Moment("first", "import", "", 1500),
    Moment("command", "import", "", 1500, 1),
    Moment("1", "import", "", 1800, 2),
    Moment("0", "open", "log.jsonl", 40, 2),
    Moment("0", "os.rename", "staging", 3, 2),
]


def real_kills(
    teachers: Path, folder: Path, moments: list[Moment], world: int, kills: int, seed: int, program: bool = False
) -> Tally:
    """Kill jobs at `moments` in turn until there were as many kills. What is left is then done by forked processes.

    Args:
        teachers: The folder of teachers.
        folder: The folder of the runs.
        moments: The moments, with the largest `number` of each.
        world: The number of processes.
        kills: The number of kills.
        seed: The seed.
        program: Whether a program of the user's starts the processes, and not the command.
    """
    tally, choice, hook = Tally(), random.Random(seed), folder / f"hook-{seed}"
    reference = whole(recipe(teachers / "edm", **SETTINGS), folder, world)
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)
    (hook / "program.py").write_text(PROGRAM)
    while tally.kills < kills:
        run, tally.runs = folder / f"run-{seed}-{tally.runs}", tally.runs + 1
        output = run.with_suffix(".txt")
        while (before := newest(run)) < SETTINGS["images"]:
            call, *places = ["resume", str(run)] if before > 0 else ["train", str(folder / "recipe.yaml"), str(run)]
            command = [call, places[0], *(["--folder", str(run)] if places[1:] else [])]
            if tally.kills == kills:
                code = max(distill(command, output, world).wait(), key=abs)
            else:
                most = moments[tally.kills % len(moments)]
                moment = replace(most, number=choice.randint(1, most.number))
                command += ["--processes", str(world), "--oversubscribe"] if world > 1 else []
                started = [str(hook / "program.py"), call, *places] if program else ["-m", "launch.main", *command]
                job = launch(started, output, PYTHONPATH=f"{hook}:{ROOT}", FAULT=json.dumps(asdict(moment)))
                code = job.processes[0].wait(300)
                if code == -9:
                    tally.count(f"{moment.event} in {moment.who}")
                    note_lost(tally, run, 0 if moment.up and not moment.whole else 2 * EVERY)
            if code not in (0, -9) or newest(run) < before:
                tally.failures.append(f"{run.name}: {code}, {before}, {newest(run)}: {output.read_text()[-500:]}")
                break
        if newest(run) == SETTINGS["images"] and (wrong := list(differences(reference, run, stopped=True))):
            tally.failures.append(f"{run.name} differs: {', '.join(wrong)}")
    return tally
