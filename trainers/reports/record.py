"""A run folder as a report reads it: whatever is there, and no code of it."""

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from distill.errors import UserError
from distill.metrics import better
from distill.public_text import printable, public_value
from distill.records import read_record
from trainers.checkpoints import checkpoint
from trainers.io import jsonl
from trainers.loop import STOPPED
from trainers.recipe.load import RUN_FILE
from trainers.recipe.strict_yaml import load_yaml
from trainers.reports.curves import HUGE, LogContent, read_numbers

SOURCES = {"log": "log.jsonl", "metrics": "metrics.jsonl", "health": "health.jsonl"}
EVALUATION = "evaluation.json"
SILENT = 600.0  # seconds without a line of the log, after which a run counts as ended; thrice those between two lines


@dataclass(frozen=True)
class RunRecord:
    """All that a report says of a run, apart from its pictures.

    Attributes:
        folder: The run folder.
        recipe: The recipe as plain types, without paths and private names. Empty if run.yaml cannot be read.
        numbers: The content of log, metrics and health by these names.
        evaluation: The content of evaluation.json, or an empty mapping.
        checkpoints: The images of the checkpoints, in order.
        stopped: Whether it waits to be resumed.
        ended: The reason for which it ended before its last image, if it did.
        problems: What is wrong with the files, one sentence each.
    """

    folder: Path
    recipe: dict[str, Any]
    numbers: dict[str, LogContent]
    evaluation: dict[str, Any]
    checkpoints: list[int]
    stopped: bool
    ended: str | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of the run: that of its folder."""
        return printable(str(public_value(self.folder.resolve().name)), 60)

    @property
    def images(self) -> int:
        """The images until now, of the newest checkpoint or the last line of a file."""
        lines = [numbers.last.get("images", 0) for numbers in self.numbers.values()]
        return int(max([0, *self.checkpoints[-1:], *lines]))

    @property
    def total(self) -> int | None:
        """The images of the whole run, by its recipe."""
        found = self.recipe.get("images")
        return found if isinstance(found, int) and found > 0 else None

    @property
    def metric(self) -> str:
        """The metric by which best/ is chosen, by the recipe."""
        settings = self.recipe.get("evaluation")
        found = settings.get("best") if isinstance(settings, dict) else None
        return found if isinstance(found, str) else "frechet"

    def best(self) -> tuple[int, float] | None:
        """Return the images and the value of the best evaluation of the run, if there is one."""
        curve, found = self.numbers["metrics"].curves.get(self.metric), None
        if curve is not None:
            for images, value in zip(curve.images, curve.mean, strict=True):
                if found is None or better(self.metric, value, found[1]):
                    found = images, value
        return found

    def outcome(self) -> tuple[bool, str]:
        """Return whether all is well, and in a sentence how the run ended or stands."""
        done, total = f"{self.images:,}", self.total
        log = self.numbers["log"].last
        counts = {key: jsonl.number(value) for key, value in log.items() if re.fullmatch(r"\w+/skipped", key)}
        skipped = {key: count for key, count in counts.items() if count is not None and 0 < count < HUGE}
        names = " and ".join(f"{count:,.0f} of the {key.partition('/')[0]}" for key, count in skipped.items())
        more = f" Updates were skipped, since a loss or a gradient was not finite: {names}." if skipped else ""
        if not self.images:
            return False, "It has not trained: there is no checkpoint, and no line of a log."
        if total is not None and self.checkpoints[-1:] and self.checkpoints[-1] >= total:
            return not skipped, f"It is finished, after {done} images.{more}"
        if total is not None and self.images >= total and not self.checkpoints:  # every run begins with one
            return not skipped, f"It is finished, after {done} images. Its checkpoints were removed.{more}"
        of = f"{done} of {total:,} images" if total else f"{done} images"
        if self.ended is not None:
            return not skipped, f"It ended after {of}: {self.ended}.{more}"
        if self.stopped:
            return not skipped, f"It was told to stop, and waits after {of}: `distill resume` goes on.{more}"
        if self._is_at_work(log.get("time")):
            return not skipped, f"It trains, and has {of}.{more}"
        saved = f"the newest checkpoint is of {self.checkpoints[-1]:,} images" if self.checkpoints else "no checkpoint"
        end = "It ended in an error" if skipped else "It ended in an error, or was killed"
        return False, f"{end}, after {of}; {saved}. `distill resume` goes on from there.{more}"

    def _is_at_work(self, timing: Any) -> bool:
        """Return whether the last line of the log is so new that the run still trains."""
        at, seconds = (
            (jsonl.number(timing.get(key)) for key in ("at", "seconds")) if isinstance(timing, dict) else (None,) * 2
        )
        return at is not None and 0 <= time.time() - at < max(SILENT, 3 * (seconds or 0))


def read_run(folder: Path, numbers: dict[str, LogContent] | None = None) -> RunRecord:
    """Return what is in a run folder. Files that are missing or damaged are named in its `problems`.

    Args:
        folder: The run folder.
        numbers: The contents of log, metrics and health, if they are known. None to read them.

    Raises:
        UserError: It is no run folder.
    """
    if not (folder / RUN_FILE).exists() and not any((folder / name).exists() for name in SOURCES.values()):
        raise UserError(f"'{folder}' is not a run folder: it has neither {RUN_FILE} nor log.jsonl")
    problems: list[str] = []
    recipe: dict[str, Any] = {}
    try:
        recipe = cast(dict[str, Any], public_value(load_yaml(folder / RUN_FILE)))
    except (OSError, UserError):
        problems.append(f"{RUN_FILE} cannot be read, so the recipe is unknown.")
    numbers = _read_logs(folder, problems) if numbers is None else numbers
    evaluation: dict[str, Any] = {}
    with suppress(FileNotFoundError):
        try:
            evaluation = cast(dict[str, Any], public_value(read_record(folder / EVALUATION, finite=False)))
        except UserError:
            problems.append(f"{EVALUATION} is damaged.")
    ended: str | None = None
    try:
        moments = sorted(int(one.name) for one in checkpoint.folders(folder / "checkpoints"))
    except OSError:
        moments = []
    with suppress(OSError, UserError):
        ended = (checkpoint.newest_state(folder / "checkpoints") or {}).get("ended")
    stopped = (folder / STOPPED).is_file()
    ended = None if ended is None else printable(str(public_value(ended)), 300)
    return RunRecord(folder, recipe, numbers, evaluation, moments, stopped, ended, problems)


def _read_logs(folder: Path, problems: list[str]) -> dict[str, LogContent]:
    """Return the contents of log, metrics and health, and add to `problems` what is wrong with their files."""
    numbers = {}
    for source, name in SOURCES.items():
        try:
            numbers[source] = found = read_numbers(folder / name)
        except (OSError, UserError):
            numbers[source] = LogContent()
            problems.append(f"{name} cannot be read.")
            continue
        if found.damaged:
            problems.append(f"{name}: {found.damaged:,} of {found.lines + found.damaged:,} lines are no records.")
        for key, count in found.not_finite.items():
            problems.append(f"{name}: {printable(key)} is not finite in {count:,} of {found.lines:,} lines.")
    return numbers


def final_numbers(record: RunRecord) -> tuple[str, dict[str, dict[str, float]]]:
    """Return the protocol of the last measurement, and its numbers by model: student and teacher.

    They are those of evaluation.json, and else of the last line of metrics.jsonl. The protocol ends with the number of
    samples. It is empty where nothing was measured.
    """
    source: Mapping[str, Any] = record.evaluation or record.numbers["metrics"].last
    if not (protocol := protocol_of(source)):
        return "", {}
    models = {key: source[key] for key in ("student", "teacher") if isinstance(source.get(key), dict)}
    found = {model: _numbers(one) for model, one in (models or {"student": source}).items()}
    return protocol, found


def protocol_of(source: Mapping[str, Any]) -> str:
    """Return the protocol of a measurement with its number of samples. It is empty where nothing was measured."""
    protocol, samples = source.get("protocol"), source.get("samples")
    if not isinstance(protocol, str):
        return ""
    return str(public_value(protocol)) + (f", {samples:,} samples" if type(samples) is int else "")


def _numbers(source: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a measurement, without those that count images or samples."""
    left_out = ("images", "samples", "halves")
    return {
        key: value for key, one in source.items() if key not in left_out and (value := jsonl.number(one)) is not None
    }
