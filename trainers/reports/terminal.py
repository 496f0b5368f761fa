"""The live view of a run in a terminal, from the run folder alone."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from distill.public_text import printable
from trainers.hooks.log import duration
from trainers.io import jsonl
from trainers.reports.curves import HUGE, LogContent
from trainers.reports.record import SOURCES, RunRecord, protocol_of, read_run

SHOWN_LINES = 200  # lines of the log that are shown as curves
BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 40  # letters of a curve
LATEST_ALARMS = 5


def screen(folder: Path) -> RenderableType:
    """Return what a terminal shows of a run: how far it is, its newest numbers with their curves, and its alarms.

    Args:
        folder: The run folder.

    Raises:
        UserError: It is no run folder.
    """
    lines = {source: jsonl.tail(folder / name, SHOWN_LINES) for source, name in SOURCES.items()}
    record = read_run(folder, {source: LogContent(last=(own or [{}])[-1]) for source, own in lines.items()})
    well, outcome = record.outcome()
    parts: list[RenderableType] = [Text(f"{record.name}: {outcome}", style="bold" if well else "bold red")]
    if record.total:
        bar = Table.grid()  # a bar alone would not end its line
        bar.add_row(ProgressBar(total=record.total, completed=record.images, width=2 * WIDTH))
        parts.append(bar)
    parts += [_speed(record, lines["log"]), _numbers(lines)]
    alarms = [(line["images"], one) for source in lines.values() for line in source for one in _alarms(line)]
    for images, alarm in sorted(alarms)[-LATEST_ALARMS:]:
        parts.append(Text(f"alarm at {images:,} images: {printable(alarm, 300)}", style="yellow"))
    return Group(*parts)


def _speed(record: RunRecord, log: Sequence[Mapping[str, Any]]) -> Text:
    """Return the line of speed, memory and the time that is left."""
    timing = log[-1].get("time") if log else None
    if not isinstance(timing, dict):
        return Text("no line of a log yet", style="dim")
    speed, memory, at = (jsonl.number(timing.get(key)) for key in ("images_per_second", "peak_memory_gib", "at"))
    words = []
    if speed is not None and speed > 0:
        words.append(f"{speed:,.0f} images/s")
        if record.total and record.images < record.total:
            words.append(f"{duration((record.total - record.images) / speed)} left")
    if memory is not None:
        words.append(f"{memory:.2f} GiB")
    if at is not None:
        words.append(f"last line {duration(max(0.0, time.time() - at))} ago")
    return Text(", ".join(words), style="dim")


def _numbers(lines: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """Return the table of the newest numbers, with the curves of the lines before them."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "now", "until now"):
        table.add_column(column, justify="right" if column == "now" else "left", no_wrap=True)
    metrics = lines["metrics"]
    same = [line for line in metrics if protocol_of(line) == protocol_of(metrics[-1])]
    rows = [
        *((name, same) for name in _names(same) if name not in ("samples", "halves")),
        *((name, lines["health"]) for name in ("distance", "diversity")),
        *((name, lines["log"]) for name in _names(lines["log"]) if "/" in name and not name.startswith("health/")),
        *((name, lines["log"]) for name in ("health/gap", "health/fake_vs_teacher", "health/accuracy")),
    ]
    for name, source in rows:
        values = [value for line in source if (value := jsonl.number(line.get(name))) is not None]
        if values and not name.endswith(("/updates", "/lr")):
            table.add_row(printable(name), f"{values[-1]:.4g}", sparkline(values))
    return table


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """Return the last `width` finite values as letters of eight heights, from the least to the most of them."""
    shown = [value for value in values if abs(value) < HUGE][-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join(BLOCKS[min(7, int(8 * (value - low) / span))] for value in shown)


def _names(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the numbers of the last line, without that of images."""
    last = lines[-1] if lines else {}
    return [name for name, value in last.items() if jsonl.number(value) is not None and name != "images"]


def _alarms(line: Mapping[str, Any]) -> list[str]:
    found = line.get("alarms")
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []
