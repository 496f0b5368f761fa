"""The numbers of a log as curves of bounded length, however long the log is."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.public_text import public_text, without_names
from trainers.io import jsonl

MOST_POINTS = 800  # of a curve at most
NAMES = 500  # curves of a file at most: no log of ours has a fifth of them
ALARMS = 200  # of a file at most, the first ones


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

    Args:
        file: The file.
        points: The largest number of points of a curve.

    Raises:
        UserError: The file is larger than any log.
    """
    count = sum(record is not None for record in jsonl.stream(file))
    found, points_of = LogContent(), dict[str, dict[int, list[float]]]()
    ends: dict[int, int] = {}
    for record in jsonl.stream(file):
        if record is None:
            found.damaged += 1
            continue
        point = found.lines * points // count if count > points else found.lines
        ends[point] = record["images"]
        for name, value in _flat(record):
            if not math.isfinite(value):
                found.not_finite[name] = found.not_finite.get(name, 0) + 1
            elif name in points_of or len(points_of) < NAMES:
                points_of.setdefault(name, {}).setdefault(point, []).append(value)
        _note(found, record)
    for name, values in points_of.items():
        found.curves[name] = Curve(
            [ends[point] for point in values],
            [math.fsum(group) / len(group) for group in values.values()],
            [min(group) for group in values.values()],
            [max(group) for group in values.values()],
        )
    return found


def _note(found: LogContent, record: dict[str, Any]) -> None:
    """Add what a record says beside its curves."""
    found.lines, found.last = found.lines + 1, record
    alarms, time = record.get("alarms"), record.get("time")
    for alarm in alarms if isinstance(alarms, list) else []:
        if isinstance(alarm, str) and len(found.alarms) < ALARMS:
            found.alarms.append((record["images"], without_names(public_text(alarm))))
    if isinstance(time, dict):
        seconds, machine = time.get("seconds"), time.get("machine")
        if isinstance(seconds, int | float) and math.isfinite(seconds):
            found.seconds += seconds
        if isinstance(machine, dict) and machine not in found.machines:
            found.machines.append(machine)


def _flat(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a record by name. Those of `time` are named `time/...`."""
    for key, value in record.items():
        if key == "images":
            continue
        if key == "time" and isinstance(value, dict):
            yield from ((f"time/{name}", one) for name, one in _flat(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key, float(value)
