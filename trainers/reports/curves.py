"""The numbers of a log as curves of bounded length, however long the log is."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.public_text import public_text, without_names
from trainers.io import jsonl

MOST_POINTS = 800  # of a curve at most
NAMES = 500  # curves of a file at most: no log of ours has a fifth of them
ALARMS, MACHINES = 200, 20  # of a file at most, the first ones
HUGE = 1e100  # a number of this size counts as not finite


@dataclass
class Curve:
    """A number over the images of training. A point stands for one line of the log, or for several.

    Attributes:
        images: The images at each point: those of its last line.
        mean: The mean of the lines of each point.
        low: The smallest number among them.
        high: The largest number among them.
    """

    images: list[int] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    @property
    def thinned(self) -> bool:
        """Whether a point stands for several lines that differ."""
        return self.low != self.high


@dataclass
class Point:
    """The lines of a log that a point of a curve stands for."""

    images: int = 0
    count: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, images: int, value: float) -> None:
        """Add a line with its images and its number."""
        self.images, self.count, self.total = images, self.count + 1, self.total + value
        self.low, self.high = min(self.low, value), max(self.high, value)

    @property
    def mean(self) -> float:
        """The mean of the lines."""
        return self.total / self.count


@dataclass
class LogContent:
    """The content of a log.

    Attributes:
        curves: The curves by the names of their numbers.
        lines: The number of lines that are records.
        damaged: The number of lines that are none, as of a file that a kill cut short.
        not_finite: The numbers of lines in which a value was not finite, by its name.
        alarms: The alarms: the images at which each was raised, and its text.
        last: The last record.
        seconds: The sum of the seconds of training.
        machines: The machines that trained it, one for each start, as the log describes them.
    """

    curves: dict[str, Curve] = field(default_factory=dict)
    lines: int = 0
    damaged: int = 0
    not_finite: dict[str, int] = field(default_factory=dict)
    alarms: list[tuple[int, str]] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    machines: list[dict[str, Any]] = field(default_factory=list)


def read_numbers(file: Path, points: int = MOST_POINTS) -> LogContent:
    """Return the content of log.jsonl, metrics.jsonl or health.jsonl. A missing file has no lines.

    Of lines that name a protocol, those of the last protocol and number of samples count alone.

    Args:
        file: The file.
        points: The largest number of points of a curve.

    Raises:
        UserError: The file is larger than any log.
    """

    kinds: Counter[tuple[str, str]] = Counter()
    last = ("", "")
    for record in jsonl.stream(file):
        if record is not None:
            kinds[last := _measure(record)] += 1
    count, found = kinds[last], LogContent()
    points_of: dict[str, dict[int, Point]] = {}
    for record in jsonl.stream(file):
        if record is None:
            found.damaged += 1
            continue
        if _measure(record) != last:
            continue
        place = found.lines * points // count if count > points else found.lines
        for name, value in _flat(record):
            if not abs(value) < HUGE:  # true of NaN
                found.not_finite[name] = found.not_finite.get(name, 0) + 1
            elif name in points_of or len(points_of) < NAMES:
                points_of.setdefault(name, {}).setdefault(place, Point()).add(record["images"], value)
        _note(found, record)
    for name, own in points_of.items():
        rows = own.values()
        columns = ([getattr(one, field) for one in rows] for field in ("images", "mean", "low", "high"))
        found.curves[name] = Curve(*columns)
    return found


def _measure(record: Mapping[str, Any]) -> tuple[str, str]:
    """Return the protocol and the number of samples of a line, as text. Numbers of another measure do not compare."""
    return str(record.get("protocol", "")), str(record.get("samples", ""))


def _note(found: LogContent, record: dict[str, Any]) -> None:
    """Add what a record says beside its curves."""
    found.lines, found.last = found.lines + 1, record
    alarms, time = record.get("alarms"), record.get("time")
    for alarm in alarms if isinstance(alarms, list) else []:
        if isinstance(alarm, str) and len(found.alarms) < ALARMS:
            found.alarms.append((record["images"], without_names(public_text(alarm))))
    if isinstance(time, dict):
        seconds, machine = jsonl.number(time.get("seconds")), time.get("machine")
        if seconds is not None and 0 <= seconds < HUGE:
            found.seconds += seconds
        if isinstance(machine, dict) and machine not in found.machines and len(found.machines) < MACHINES:
            found.machines.append(machine)


def _flat(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a record by name. Those of `time` are named `time/...`."""
    for key, value in record.items():
        if key == "images":
            continue
        if key == "time" and isinstance(value, dict):
            yield from ((f"time/{name}", one) for name, one in _flat(value))
        elif (found := jsonl.number(value)) is not None:
            yield key, found
