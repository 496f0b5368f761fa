"""The hook that logs to log.jsonl, to the trackers of the recipe, and to the terminal."""

import platform
import time
from contextlib import suppress
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from trainers.engine.memory import peak_memory
from trainers.engine.networks import compile_seconds
from trainers.engine.session import Session
from trainers.hooks.alarms import LOG_RULES, Alarms
from trainers.hooks.hook import Hook
from trainers.hooks.levels import draw_levels
from trainers.hooks.trackers import log_numbers, log_picture
from trainers.io.console import tolerate_disk_errors
from trainers.io.jsonl import append, read


class Clock(NamedTuple):
    """The time at a point of a run, and the seconds since its start that are no training.

    Attributes:
        time: The time, in seconds.
        images: The images so far.
        compiling: The seconds of compilation.
        waiting: The seconds in which training waited for real samples.
        in_hooks: The seconds of hooks, such as previews, evaluations and checkpoints.
    """

    time: float
    images: int
    compiling: float
    waiting: float
    in_hooks: float

    @classmethod
    def of(cls, session: Session) -> Self:
        """Return the time of a session."""
        waiting, in_hooks = session.batches.seconds, session.hook_seconds
        return cls(time.perf_counter(), session.state.images, compile_seconds(), waiting, in_hooks)


class Log(Hook):
    """A hook that logs the means over all ranks since the last log point.

    It also logs the learning rate and the updates of each player, and the changes that a resume has made since the last
    line. Between log points the host reads nothing from the device. All but the key `time` of a line of log.jsonl is
    determined by the recipe.

    Args:
        folder: The run folder.
        every: The number of images between two log points.
        console: Where progress is shown.
    """

    def __init__(self, folder: Path, every: int, console: Console) -> None:
        self.file, self.every, self.console = folder / "log.jsonl", every, console
        self.begun: Clock | None = None
        self.clock: Clock | None = None  # at the last line
        self.last = 0  # images of the last line
        self.drawn = 0  # images of the last picture by noise level
        self.machine: dict[str, Any] | None = None  # told once for each start
        self.alarms = Alarms(LOG_RULES)
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}")
        # Rich draws a bar in a notebook through ipywidgets, and prints a warning where it is not installed.
        bar = console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)
        self.progress = Progress(*columns, TimeRemainingColumn(), console=console, disable=not bar)
        self.task = self.progress.add_task(folder.name, total=None, status="")

    def start(self, session: Session) -> None:
        """Start the clock and the progress bar."""
        self.begun = self.clock = Clock.of(session)
        if session.accelerator.is_main_process:
            self.machine = describe_machine(session)
            self.alarms = Alarms(LOG_RULES, read(self.file))
            self.drawn = session.state.images
            self.last = max((line["images"] for line in self.alarms.lines), default=0)
            self.progress.update(self.task, total=session.run.images, completed=session.state.images)
            self.progress.start()

    def __call__(self, session: Session) -> None:
        images = session.state.images
        means = with_ratios(session.state.meter.read(session.accelerator))  # collective
        if (loss := means.get("fake/denoising")) is not None:
            means["health/fake_loss"] = loss / session.dataset.elements
        assert self.clock is not None
        now, last = Clock.of(session), self.clock
        self.clock, compiling = now, now.compiling - last.compiling
        seconds, in_hooks = now.time - last.time - compiling, now.in_hooks - last.in_hooks
        counts = player_numbers(session)
        if session.accelerator.is_main_process:
            speed = (now.images - last.images) / max(seconds - in_hooks, 1e-9)
            memory = peak_memory(session.accelerator.device)
            timing: dict[str, Any] = {"seconds": round(seconds, 4), "images_per_second": round(speed, 1)}
            if in_hooks:
                timing["hook_seconds"] = round(in_hooks, 4)
            if session.batches.real:
                timing["data_seconds"] = round(now.waiting - last.waiting, 4)
            timing["at"] = round(time.time(), 3)
            timing["peak_memory_gib"] = round(memory, 4)
            if compiling:
                timing["compile_seconds"] = round(compiling, 1)
                self.console.print(f"{session.run.name}: the networks were compiled in {compiling:.0f} s")
            if self.machine is not None:
                timing["machine"], self.machine = self.machine, None
            changes = [change for change in session.state.changes if self.last <= change["images"] < images]
            told = {"changes": changes} if changes else {}
            self.last = images
            record = self.alarms.judge({"images": images, **told, **means, **counts, "time": timing})
            with tolerate_disk_errors(f"{self.file}: the line at {images:,} images is"):
                append(self.file, record)
            machine = {"images_per_second": speed, "peak_memory_gib": memory}
            log_numbers(session.accelerator, {**means, **counts, **machine}, images)
            self._draw(session, means)
            self._show(session, means, speed, memory)

    def _draw(self, session: Session, means: dict[str, float]) -> None:
        """Give the trackers a picture of the health by noise level, as often as samples are drawn."""
        images, every = session.state.images, session.run.samples_every
        if session.accelerator.trackers and every and images - self.drawn >= every:
            self.drawn = images
            if (picture := draw_levels(means)) is not None:
                log_picture(session.accelerator, "health by noise level", picture, images)

    def _show(self, session: Session, means: dict[str, float], speed: float, memory: float) -> None:
        """Show losses, speed, memory and the time that is left, in the progress bar or in a line.

        Args:
            session: The run at work.
            means: The numbers of the log by name.
            speed: Images per second.
            memory: GiB.
        """
        run, images, evaluation = session.run, session.state.images, session.run.evaluation
        shown = [name for name in means if not name.startswith("health/") and "grad_norm" not in name]
        words = [f"{speed:.0f} images/s", "  ".join(f"{name} {means[name]:.4g}" for name in shown), f"{memory:.2f} GiB"]
        if (measured := session.measured.get(evaluation.best)) is not None:
            words.insert(1, f"{evaluation.best} {measured:.4g}")
        if evaluation.every and images < run.images:
            following = min(evaluation.every * (images // evaluation.every + 1), run.images)
            words.append(f"evaluation in {duration((following - images) / max(speed, 1e-9))}")
        if self.progress.disable:
            assert self.begun is not None and self.clock is not None
            took = self.clock.time - self.begun.time - self.clock.compiling + self.begun.compiling  # hooks included
            if (done := images - self.begun.images) > 0:  # else a stop came before this line
                words.append(f"{duration(max(0, run.images - images) * took / done)} left")
            self.console.print(f"{run.name}: {images:,} of {run.images:,} images, {', '.join(words)}")
        else:
            self.progress.update(self.task, completed=images, status="  ".join(words))

    def stop(self) -> None:
        """Remove the progress bar."""
        self.progress.stop()


def duration(seconds: float) -> str:
    """Return a time in days, hours, minutes and seconds, such as 1:05:00."""
    return str(timedelta(seconds=round(min(seconds, 1e8)))) if seconds >= 0 else "unknown"


def describe_machine(session: Session) -> dict[str, Any]:
    """Return the kind of the device, the number of processes, and the versions of torch and of this package."""
    device = session.accelerator.device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} of {platform.machine()}"
    found = {"device": kind, "processes": session.accelerator.num_processes, "torch": f"torch {torch.__version__}"}
    with suppress(PackageNotFoundError):  # a checkout that was never installed
        found["distill"] = f"distill {version('distill-onestep')}"
    return found


def player_numbers(session: Session) -> dict[str, float]:
    """Return the learning rate of the last update of each player, and the numbers of its updates and skipped updates.

    The host waits for the device here.
    """
    run, images, found = session.run, session.state.images, dict[str, float]()
    for name, player in session.state.players.items():
        found[f"{name}/lr"] = player.learning_rate(max(0, images - run.batch_size), run.images)
        found |= {f"{name}/updates": player.updates, f"{name}/skipped": player.counters()["skipped"]}
    return found


def with_ratios(means: dict[str, float]) -> dict[str, float]:
    """Return `means` with the ratios of the fake's denoising error to the teacher's, on the same samples.

    There is a ratio over all noise levels and one for each bin. Below 1 the fake knows the generator's samples better
    than the teacher does. A rise means that the fake lags behind the generator.
    """
    fake, teacher = "health/fake_error", "health/teacher_error"
    errors = {name.removeprefix(fake): mean for name, mean in means.items() if name.startswith(fake)}
    ratios = {
        f"health/fake_vs_teacher{b}": mean / means[teacher + b] for b, mean in errors.items() if means.get(teacher + b)
    }
    return means | ratios
