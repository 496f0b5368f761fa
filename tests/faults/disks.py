"""Faults that are no kill of everything: one rank, the disk, damage, a second run, the clock."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.kills import SETTINGS, differences, newest, whole
from tests.faults.victim import Trap, distill, launcher, seconds_until_gone
from tests.tiny import Job, recipe
from tests.tiny import distill as distill_process
from trainers.checkpoints import saver
from trainers.hooks import Log

CLONE_NEWNS = 0x20000


def expect(right: bool, output: Path | str) -> None:
    if not right:
        raise AssertionError(output.read_text()[-1500:] if isinstance(output, Path) else output)


def reference(teachers: Path, folder: Path, world: int = 1) -> Path:
    """The whole run of kills.py."""
    return whole(recipe(teachers / "edm", **SETTINGS), folder.parent / "kills", world)


def train(folder: Path) -> tuple[list[str], Path, Path]:
    """Arguments that train, the run folder, the output."""
    run = folder / "run"
    return ["train", str(folder.parent / "kills/recipe.yaml"), "--folder", str(run)], run, folder / "out.txt"


def same(left: Path, right: Path) -> str:
    wrong = list(differences(left, right))
    expect(not wrong, f"differs: {wrong}")
    return "the last checkpoint, log, best/ and pictures are those of an untouched run, to the bit"


def one_rank_killed(teachers: Path, folder: Path) -> str:
    """Through `--processes 2`: the launcher ends the other."""
    reference(teachers, folder)
    arguments, run, output = train(folder)
    long = [*arguments[:2], "images=1000000", *arguments[2:], "--processes", "2", "--oversubscribe"]
    job: Job = distill_process(long, output)
    expect(job.wait_for((run / "log.jsonl").is_file, 300), output)
    workers = [int(one) for one in subprocess.check_output(["pgrep", "-P", str(job.processes[0].pid)]).split()]
    os.kill(workers[1], signal.SIGKILL)
    began = time.monotonic()
    code = job.finish(60)
    seconds = time.monotonic() - began
    line = [one for one in job.text.splitlines() if one.startswith("distill: process ")][-1]
    expect(seconds < 5, f"{seconds:.1f} s: {output}")
    expect(code == 137 and not any(Path(f"/proc/{one}/cmdline").exists() for one in workers), output)
    return f"the other ended after {seconds:.1f} s, exit code {code}: `{line}`"


def in_mount(size: str, first: Callable[[], None]) -> Callable[[], None]:
    """Before a command: a tmpfs over the working directory's run folder, in a mount namespace of its own."""

    def prepare() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        expect(libc.unshare(CLONE_NEWNS) == 0, "unshare: root only")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        first()

    return prepare


def at_images(moments: dict[int, Callable[[], Any]]) -> None:
    """In the process that trains: do something at log points."""
    call = Log.__call__

    def acting(self: Log, session: Any) -> None:
        if act := moments.get(session.state.images):
            act()
        call(self, session)

    Log.__call__ = acting  # type: ignore[method-assign]


def disk_full(teachers: Path, folder: Path) -> str:
    """A tmpfs that something else fills after 24 images and leaves again before 96."""
    untouched = reference(teachers, folder)
    arguments, run, output = train(folder)
    filler, copy = run / "filler", folder / "copy"

    def fill() -> None:
        with filler.open("wb", buffering=0) as stream:
            try:
                while stream.write(bytes(4096)):
                    pass
            except OSError:
                return

    def mount() -> None:
        run.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(run)], check=True)
        at_images({40: fill, 104: filler.unlink})
        write = saver.Saver.close

        def close(self: saver.Saver) -> None:
            write(self)
            shutil.copytree(run, copy)  # the mount ends with the process

        saver.Saver.close = close  # type: ignore[method-assign]

    codes = distill(arguments, output, 1, (), in_mount("8m", mount)).wait()
    text = output.read_text()
    failed = [line for line in text.splitlines() if line.startswith("the checkpoint at") and "not saved" in line]
    expect(codes == [0] and len(failed) >= 2 and "No space left" in failed[0], output)
    last = f"checkpoints/{SETTINGS['images']:012d}/manifest.json"
    expect((copy / last).read_text() == (untouched / last).read_text(), "the end differs")
    expect(newest(copy) == SETTINGS["images"] and not list((copy / "checkpoints").glob(".*")), "leftovers")
    return (
        f"{len(failed)} saves ended (`{failed[0]}`), the run went on to the same bits, and saved when there was space"
    )


def read_only(teachers: Path, folder: Path) -> str:
    """The folder becomes read-only at 40 images, for good; then a fresh run in a read-only place."""
    reference(teachers, folder)
    arguments, run, output = train(folder)

    def seal() -> None:
        while newest(run) < 24:  # its save, beside training
            time.sleep(0.01)
        for path in (run, *run.rglob("*")):
            path.chmod(path.stat().st_mode & ~0o222)
        os.seteuid(65534)  # root may write everywhere

    codes = distill(arguments, output, 1, (), lambda: at_images({40: seal})).wait()
    text = output.read_text()
    line = text.splitlines()[-1]
    expect(codes == [1] and "not saved" in line and "Permission denied" in line and "Traceback" not in text, output)
    found = newest(run)
    expect(found == 24, f"newest is {found}")

    def sealed() -> None:
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(place)], check=True)

    place, second = folder / "sealed", folder / "second.txt"
    codes = distill([*arguments[:2], "--folder", str(place / "run")], second, 1, (), in_mount("1m", sealed)).wait()
    expect(codes == [1] and len(second.read_text().splitlines()) == 1, second)
    return (
        f"while training: every save ended with a line, the run trained to its end, and said `{line}` (exit code 1);"
        f" the checkpoint of {found} images is valid. At the start: exit code 1, `{second.read_text().strip()}`"
    )


def damaged(change: Callable[[Path], None], world: int) -> Callable[[Path, Path], str]:
    """A run of `world` processes is killed at its third checkpoint, whose files are then damaged."""

    def fault(teachers: Path, folder: Path) -> str:
        untouched = reference(teachers, folder, world)
        arguments, run, output = train(folder)
        trap = (
            Trap("trainers.checkpoints.saver:Saver._prune", 4)
            if world == 1
            else Trap("trainers.engine.player:Player.step", 84)
        )
        distill(arguments, output, world, [trap]).wait()
        before = newest(run)
        change(run / "checkpoints" / f"{before:012d}")
        second = folder / "second.txt"
        codes = distill(["resume", str(run)], second, world).wait()
        lines = [line for line in second.read_text().splitlines() if line.startswith(("skipped", "resumed"))]
        expect(codes == [0] * world and len(lines) == 2, second)
        reason = lines[0].split("': ", 1)[1]
        return f"`skipped checkpoint ...: {reason}`, `{lines[1].replace(str(run), 'RUN')}`; {same(untouched, run)}"

    return fault


def shard(folder: Path) -> Path:
    return sorted(folder.glob("fake*.safetensors"))[-1]


def truncate(folder: Path) -> None:
    os.truncate(shard(folder), shard(folder).stat().st_size - 100)


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(bytes(data))


def two_runs(teachers: Path, folder: Path) -> str:
    """While one trains, `train` and `resume` of the same folder."""
    untouched = reference(teachers, folder)
    arguments, run, output = train(folder)
    slow = lambda: at_images({16: lambda: time.sleep(8)})  # noqa: E731
    first = distill(arguments, output, 1, (), slow)
    while not (run / "log.jsonl").exists():
        time.sleep(0.01)
    second = folder / "second.txt"
    codes = distill(["resume", str(run)], second).wait()
    line = second.read_text().strip()
    expect(codes == [2] and "is in use by process" in line and "\n" not in line, second)
    expect(first.wait() == [0], output)
    return f"the second: exit code 2, `{line.replace(str(run), 'RUN')}`; the first: {same(untouched, run)}"


def two_starts(teachers: Path, folder: Path) -> str:
    """`train` twice at once, each on two processes."""
    untouched = reference(teachers, folder, 2)
    arguments, run, _ = train(folder)
    outputs = [folder / f"{number}.txt" for number in range(2)]
    codes = [job.wait() for job in [launcher(arguments, output, 2) for output in outputs]]
    expect(sorted(codes) == [[0], [2]], f"{codes} {[output.read_text()[-500:] for output in outputs]}")
    line = outputs[codes.index([2])].read_text().strip()
    expect("\n" not in line and ("is in use by process" in line or "holds a run already" in line), line)
    seconds_until_gone()
    return f"one: exit code 2, `{line.replace(str(run), 'RUN')}`; the other: {same(untouched, run)}"


def clock_backwards(teachers: Path, folder: Path) -> str:
    """time.time() falls by an hour at every call, over a kill and a resume."""
    untouched = reference(teachers, folder)
    arguments, run, output = train(folder)

    def backwards() -> None:
        now = [time.time()]

        def earlier() -> float:
            now[0] -= 3600
            return now[0]

        time.time = earlier

    codes = distill(arguments, output, 1, [Trap("trainers.engine.player:Player.step", 60)], backwards).wait()
    expect(codes == [-9], output)
    codes = distill(["resume", str(run)], output, 1, (), backwards).wait()
    expect(codes == [0], output)
    return same(untouched, run)


FAULTS: dict[str, Callable[[Path, Path], str]] = {
    "one of two processes killed": one_rank_killed,
    "disk full (tmpfs)": disk_full,
    "read-only folder": read_only,
    "a truncated shard, 1 process": damaged(truncate, 1),
    "a truncated shard, 2 processes": damaged(truncate, 2),
    "a flipped byte in a shard": damaged(lambda folder: flip(shard(folder), -7), 2),
    "a flipped byte in the manifest": damaged(lambda folder: flip(folder / "manifest.json", 30), 1),
    "two runs in one folder": two_runs,
    "two starts at once in one folder": two_starts,
    "the clock goes backwards": clock_backwards,
}
