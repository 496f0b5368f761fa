"""The pages: the report of a run, and the comparison of several."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from distill.errors import UserError
from distill.public_text import printable, public_value
from trainers.hooks.health import BESIDE
from trainers.hooks.log import duration
from trainers.hooks.trackers import flat_keys
from trainers.io import jsonl
from trainers.io.atomic import atomic_file
from trainers.recipe.public import nested_name
from trainers.recipe.strict_yaml import to_yaml
from trainers.reports.charts import Chart, charts_of, level_charts, shown_name
from trainers.reports.curves import LogContent
from trainers.reports.pictures import Picture, read_picture, read_pictures, sample_files
from trainers.reports.record import RunRecord, final_numbers, protocol_of, read_run
from trainers.reports.signs import MACHINE_SIGNS, QUALITY_SIGNS, TRAINING_SIGNS

TEMPLATES = Path(__file__).with_name("templates")
MOST_RUNS = 20  # of a comparison


def write_report(folder: str | Path, file: str | Path | None = None) -> Path:
    """Write the report of a run: one HTML file that needs no network.

    Args:
        folder: The run folder, of a run at any point, finished or broken.
        file: The file to write. None for report.html in the run folder.

    Returns:
        The file.

    Raises:
        UserError: It is no run folder.
    """
    record = read_run(Path(folder))
    place = record.folder / "report.html" if file is None else Path(file)
    pictures, drawn = read_pictures(record.folder)
    well, outcome = record.outcome()
    log = {record.name: record.numbers}
    lines = _reference_lines(record)
    text = _render(
        "report.html",
        title=record.name,
        record=record,
        well=well,
        outcome=outcome,
        facts=_facts(record),
        numbers=_numbers_table(record),
        pictures=pictures,
        drawn=drawn,
        beside=read_picture(record.folder / BESIDE),
        quality=charts_of(QUALITY_SIGNS, log, lines),
        training=charts_of(TRAINING_SIGNS, log, {}),
        levels=level_charts(record.numbers["log"]),
        machine=charts_of(MACHINE_SIGNS, log, {}),
        alarms=sorted(alarm for numbers in record.numbers.values() for alarm in numbers.alarms),
        advice=_advice(record),
        recipe=to_yaml(record.recipe) if record.recipe else "unknown",
    )
    return _write(place, text)


def write_comparison(folders: Sequence[str | Path], file: str | Path) -> Path:
    """Write the comparison of several runs: one HTML file that needs no network.

    Args:
        folders: The run folders.
        file: The file to write.

    Returns:
        The file.

    Raises:
        UserError: One is no run folder, or there are fewer than two runs or too many.
    """
    if not 2 <= len(folders) <= MOST_RUNS:
        raise UserError(f"compare: takes 2 to {MOST_RUNS} runs, got {len(folders)}")
    records = [read_run(Path(folder)) for folder in folders]
    names = _distinct([record.name for record in records])
    runs = {name: record.numbers for name, record in zip(names, records, strict=True)}
    newest = [sample_files(record.folder)[-1:] for record in records]
    text = _render(
        "compare.html",
        title=" and ".join(names),
        names=names,
        tables=_final_tables(dict(zip(names, records, strict=True))),
        states=[
            [name, f"{one.images:,}", duration(one.numbers["log"].seconds), one.outcome()[1]]
            for name, one in zip(names, records, strict=True)
        ],
        rows=[
            (name, read_picture(files[0], int(files[0].name[:12])) if files else None)
            for name, files in zip(names, newest, strict=True)
        ],
        quality=_quality_of_several(dict(zip(names, records, strict=True))),
        training=[*charts_of(TRAINING_SIGNS, runs, {}), *charts_of(MACHINE_SIGNS, runs, {})],
        differences=_differences([record.recipe for record in records]),
    )
    return _write(Path(file), text)


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    """Return the lines of the summary."""
    recipe, log = record.recipe, record.numbers["log"]
    speeds = log.curves.get("time/images_per_second")
    memory = log.curves.get("time/peak_memory_gib")
    best = record.best()
    found = {
        "recipe": recipe.get("name"),
        "objective": nested_name(recipe.get("objective")),
        "teacher": recipe.get("teacher"),
        "data": nested_name(recipe.get("data")),
        "images": f"{record.images:,}" + (f" of {record.total:,}" if record.total else ""),
        "batch": recipe.get("batch_size"),
        "precision": recipe.get("precision"),
        "time": duration(log.seconds),
        "speed": f"{median(speeds.mean):,.0f} images/s" if speeds else None,
        "peak memory": f"{max(memory.high):.2f} GiB a process" if memory else None,
        "best": f"{record.metric} {best[1]:.4g} at {best[0]:,} images" if best else None,
    }
    lines = [(name, str(value)) for name, value in found.items() if value not in (None, "")]
    for machine in log.machines:
        words = [machine[key] for key in ("device", "processes", "torch", "distill") if key in machine]
        lines.append(("machine", ", ".join(printable(str(public_value(word)), 80) for word in words)))
    return lines


def _numbers_table(record: RunRecord) -> tuple[list[str], list[list[str]]] | None:
    """Return the columns and rows of the final numbers, if something was measured."""
    protocol, models = final_numbers(record)
    return _table(protocol, models) if models else None


def _final_tables(records: Mapping[str, RunRecord]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return a table for each protocol: its name, columns and rows."""
    groups: dict[str, dict[str, dict[str, float]]] = {}
    for name, record in records.items():
        protocol, models = final_numbers(record)
        for model, numbers in models.items():
            row = name if model == "student" else f"{name}, {model}"
            groups.setdefault(protocol, {})[row] = numbers
    return [(protocol, *_table("run", rows)) for protocol, rows in groups.items()]


def _table(title: str, rows: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of numbers. The first column holds the names of the rows, under a title."""
    names = list(dict.fromkeys(name for numbers in rows.values() for name in numbers))
    cells = [[row, *(_cell(numbers.get(name)) for name in names)] for row, numbers in rows.items()]
    return [title, *(shown_name(name) for name in names)], cells


def _quality_of_several(records: Mapping[str, RunRecord]) -> list[Chart]:
    """Return the charts of quality of several runs. Metrics share a chart where their protocol is the same."""
    protocols: dict[str, dict[str, dict[str, LogContent]]] = {}
    for name, record in records.items():
        if protocol := protocol_of(record.numbers["metrics"].last):
            protocols.setdefault(protocol, {})[name] = {"metrics": record.numbers["metrics"]}
    found = []
    for protocol, runs in protocols.items():
        for chart in charts_of(QUALITY_SIGNS, runs, {}):
            found.append(replace(chart, title=f"{chart.title}, {protocol}") if len(protocols) > 1 else chart)
    health = {name: {"health": record.numbers["health"]} for name, record in records.items()}
    return [*found, *charts_of(QUALITY_SIGNS, health, {})]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _reference_lines(record: RunRecord) -> dict[str, dict[str, float]]:
    """Return the horizontal lines of the charts of metrics: the teacher's, and that of the real halves."""
    found: dict[str, dict[str, float]] = {}
    last = record.numbers["metrics"].last
    if (halves := jsonl.number(last.get("halves"))) is not None:
        found["frechet"] = {"real halves": halves}
    same = all(record.evaluation.get(key) == last.get(key) for key in ("protocol", "samples"))
    if record.evaluation and same:
        for name, value in final_numbers(record)[1].get("teacher", {}).items():
            found.setdefault(name, {})["teacher"] = value
    return found


def _advice(record: RunRecord) -> list[str]:
    """Return what a person may do next, one sentence each."""
    found, best = [], record.best()
    curve = record.numbers["metrics"].curves.get(record.metric)
    if best and curve and best[0] < curve.images[-1]:
        found.append(
            f"The best {record.metric} was at {best[0]:,} images, {curve.images[-1] - best[0]:,} before the last"
            " evaluation: best/ has these weights (`distill evaluate RUN --which best`)."
        )
    if best and curve and len(curve.mean) > 2 and best[0] == curve.images[-1]:
        found.append(
            "The last evaluation is the best one: a longer run may be better (`distill resume RUN images=...`)."
        )
    if not curve:
        found.append("Nothing was measured while it trained: set evaluation.every, or run `distill evaluate RUN`.")
    found.append(
        "`distill sample RUN` draws samples, and `distill export RUN` writes the generator for other software."
    )
    return found


def _differences(recipes: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the keys in which recipes differ, with the value of each."""
    flat = [flat_keys(recipe) for recipe in recipes]
    keys = list(dict.fromkeys(key for recipe in flat for key in recipe))
    rows = [[key, *(str(recipe.get(key, "")) for recipe in flat)] for key in keys if key != "name"]
    return [row for row in rows if len(set(row[1:])) > 1]


def _distinct(names: Sequence[str]) -> list[str]:
    """Return names that differ: the second of two equal ones gets a number."""
    found: list[str] = []
    for name in names:
        count = sum(one == name or one.startswith(f"{name} (") for one in found)
        found.append(f"{name} ({count + 1})" if count else name)
    return found


def _write(place: Path, text: str) -> Path:
    """Write a page as a whole, and return its file."""
    with atomic_file(place) as staging:
        staging.write_text(text, encoding="utf-8")
    return place


def _render(template: str, **content: Any) -> str:
    """Return a page."""
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    numbers: dict[int, str] = {}

    def number(chart: Chart) -> str:
        return numbers.setdefault(id(chart), f"figure-{len(numbers)}")

    def addresses(pictures: Sequence[Picture]) -> list[dict[str, Any]]:
        return [{"images": picture.images, "address": picture.address} for picture in pictures]

    page: str = (
        _environment()
        .get_template(template)
        .render(
            **content,
            number=number,
            addresses=addresses,
            style=Markup((TEMPLATES / "style.css").read_text()),
            script=Markup((TEMPLATES / "page.js").read_text()),
            plotly=Markup(get_plotlyjs()),
            version=_version(),
        )
    )
    return page


@cache
def _environment() -> Any:
    """Return Jinja's environment. It escapes all that a run folder holds."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _version() -> str:
    try:
        return version("distill-onestep")
    except PackageNotFoundError:
        return ""
