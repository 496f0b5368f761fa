"""Reports and comparisons say what the files of a run say, of whole runs and of broken ones."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from distill import UserError
from tests.trainers.reports.runs import DISTANCES, PROTOCOL, RECIPE, line, write_lines, write_run
from trainers.reports import write_comparison, write_report
from trainers.reports.charts import charts_of, level_charts
from trainers.reports.curves import read_numbers
from trainers.reports.pictures import read_picture, read_pictures
from trainers.reports.record import read_run
from trainers.reports.signs import QUALITY_SIGNS, TRAINING_SIGNS
from trainers.reports.terminal import screen


def words(page: Path) -> str:
    """The text of a page, without tags, scripts and styles."""
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", page.read_text(), flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", text)).split())


def test_a_long_log_becomes_means_and_bands(tmp_path: Path) -> None:
    write_lines(tmp_path / "log.jsonl", [line(8 * (n + 1), **{"fake/denoising": float(n % 10)}) for n in range(1000)])
    numbers = read_numbers(tmp_path / "log.jsonl", points=100)
    curve = numbers.curves["fake/denoising"]
    assert numbers.lines == 1000 and numbers.seconds == 61_000
    assert curve.images == list(range(80, 8001, 80)) and curve.thinned
    assert curve.mean == [4.5] * 100 and curve.low == [0.0] * 100 and curve.high == [9.0] * 100
    assert not numbers.curves["generator/sid"].thinned
    short = read_numbers(tmp_path / "log.jsonl", points=1000).curves["fake/denoising"]
    assert short.mean[:11] == [*range(10), 0] and not short.thinned


def test_a_report_says_what_the_files_say(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "small")
    alarm = "health/gap is 9, above 1.5: the student moves away. Lower generator.lr (docs/health.md#gap-grows)"
    machine = {"device": "NVIDIA H200", "processes": 8, "torch": "torch 2.13.0", "distill": "distill 0.1.0"}
    lines = [line(1000), line(2000, alarms=[alarm]), line(3000), line(4000)]
    lines[0]["time"]["machine"] = machine
    write_lines(folder / "log.jsonl", lines)
    student, teacher = {"frechet": 2.25, "recall": 0.5}, {"frechet": 1.5, "recall": 0.75}
    report = {**PROTOCOL, "images": 4000, "student": student, "teacher": teacher, "ratio": 1.5}
    (folder / "evaluation.json").write_text(json.dumps(report))
    text = words(write_report(folder))
    for said in (
        "small It is finished, after 4,000 images.",
        "objective guided(sid)",
        "teacher edm",
        "time 0:04:04",
        "speed 16 images/s",
        "machine NVIDIA H200, 8, torch 2.13.0, distill 0.1.0",
        "best frechet 2 at 3,000 images",
        "pca48(digits), 500 samples Frechet distance recall student 2.25 0.5 teacher 1.5 0.75",
        f"2,000 images : {alarm}",
        "The best frechet was at 3,000 images, 1,000 before the last evaluation",
        "Checkpoints that are kept: 1,000, 2,000, 3,000, 4,000 images.",
        "Student: Frechet distance Normal. It approaches that of the teacher",
    ):
        assert said in text, said
    assert folder.joinpath("report.html").is_file()


def test_a_report_names_no_place_of_this_machine(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "small")
    write_lines(folder / "log.jsonl", [line(1000, alarms=["look at /home/somebody/secret/log.jsonl"])])
    page = write_report(folder).read_text()
    assert "somebody" not in page and str(tmp_path) not in page and "log.jsonl" in page


def test_what_a_run_folder_holds_cannot_write_into_the_page(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    folder = write_run(tmp_path / "small", recipe=RECIPE.replace("name: small", f"name: '{evil}'"))
    write_lines(folder / "log.jsonl", [line(1000, alarms=[evil], **{f"fake/{evil}": 1.0, f"health/{evil}_at_x": 1.0})])
    write_lines(folder / "metrics.jsonl", [{"images": 1000, "frechet": 1.0, "protocol": evil, "samples": 2}])
    assert "alert(1)</script>" not in write_report(folder).read_text()
    other = write_run(tmp_path / evil.replace("/", "|"))
    assert "<script>alert" not in write_comparison([folder, other], tmp_path / "page.html").read_text()


def newer(log: list[dict[str, Any]], seconds: float) -> list[dict[str, Any]]:
    import time

    for one in log:
        one["time"]["at"] = time.time() - seconds
    return log


SHORT = ("at work", "stopped", "killed", "slow lines", "ended early")


@pytest.mark.parametrize(
    ("name", "well", "outcome"),
    [
        ("finished", True, "It is finished, after 4,000 images."),
        ("removed", True, "It is finished, after 4,000 images. Its checkpoints were removed."),
        ("at work", True, "It trains, and has 2,000 of 4,000 images."),
        ("stopped", True, "It was told to stop, and waits after 2,000 of 4,000 images: `distill resume` goes on."),
        (
            "killed",
            False,
            "or was killed, after 2,000 of 4,000 images; the newest checkpoint is of 1,000 images.",
        ),
        ("not finite", False, "Updates were skipped, since a loss or a gradient was not finite: 20 of the fake."),
        ("nothing", False, "It has not trained: there is no checkpoint, and no line of a log."),
        ("no recipe", False, "run.yaml cannot be read, so the recipe is unknown."),
        ("half a log", True, "log.jsonl: 2 of 6 lines are no records."),
        ("slow lines", True, "It trains, and has 2,000 of 4,000 images."),
        ("ended early", True, "It ended after 2,000 of 4,000 images: no better value for 32 images."),
        ("losses not finite", True, "log.jsonl: fake/denoising is not finite in 1 of 4 lines."),
    ],
)
def test_how_a_run_ended(name: str, well: bool, outcome: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "small", images=2000 if name in SHORT else 4000)
    log = folder / "log.jsonl"
    if name == "at work":
        write_lines(log, newer([line(1000), line(2000)], 30))
    elif name == "slow lines":  # every half an hour, the last 20 minutes ago
        write_lines(log, newer([line(1000), line(2000)], 1200))
        lines = [json.loads(one) for one in log.read_text().splitlines()]
        lines[-1]["time"]["seconds"] = 1800.0
        write_lines(log, lines)
    elif name == "ended early":
        state = {"format": 3, "images": 2000, "processes": 1, "counters": {}, "unfinished": [], "teacher": None}
        state |= {"recipe": {}, "ended": "no better value for 32 images"}
        (folder / "checkpoints" / f"{2000:012d}" / "state.json").write_text(json.dumps(state))
    elif name == "stopped":
        (folder / "stopped.json").write_text("{}")
    elif name == "removed":
        shutil.rmtree(folder / "checkpoints")
    elif name == "killed":
        (folder / "checkpoints" / f"{2000:012d}").rmdir()
    elif name == "not finite":
        write_lines(log, [line(1000), line(4000, **{"fake/skipped": 20})])
    elif name == "nothing":
        folder = tmp_path / "empty"
        folder.mkdir()
        (folder / "run.yaml").write_text(RECIPE)
    elif name == "no recipe":
        (folder / "run.yaml").write_text("a: [")
    elif name == "half a log":
        log.write_text(log.read_text() + '[1]\n{"images": 50')
    elif name == "losses not finite":
        write_lines(log, [line(n * 1000, **{"fake/denoising": float("nan") if n == 2 else 1.0}) for n in range(1, 5)])
    record = read_run(folder)
    assert record.outcome()[0] == well, record.outcome()
    assert outcome in words(write_report(folder))


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"' is not a run folder: it has neither run.yaml nor log.jsonl$"):
        write_report(tmp_path)
    with pytest.raises(UserError, match=r"^compare: takes 2 to 20 runs, got 1$"):
        write_comparison([write_run(tmp_path / "small")], tmp_path / "page.html")


def test_pictures_keep_their_colours_and_are_bounded_in_size(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "small", pictures=200)
    pictures, drawn = read_pictures(folder, most=10)
    assert drawn == 200 and [one.images for one in pictures] == [1000 * (round(at * 199 / 9) + 1) for at in range(10)]
    data = base64.b64decode(pictures[-1].address.partition(",")[2])
    pixel = Image.open(io.BytesIO(data)).convert("RGB").getpixel((32, 24))
    assert max(abs(one - other) for one, other in zip(pixel, (199, 40, 200), strict=True)) < 6
    file = tmp_path / "noise.png"
    Image.effect_noise((2000, 1000), 90).save(file)
    picture = read_picture(file, room=50_000)
    assert picture is not None and len(picture.address) < 50_100 and picture.width == 2 * picture.height
    file.write_bytes(file.read_bytes()[:1000])
    assert read_picture(file) is None and read_picture(tmp_path / "none.png") is None


def test_charts_have_the_numbers_and_the_bounds(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "small")
    numbers = read_run(folder).numbers
    quality = charts_of(QUALITY_SIGNS, {"small": numbers}, {"frechet": {"teacher": 1.5}})
    first = quality[0]
    assert first.title == "Student: Frechet distance" and tuple(first.figure["data"][0]["y"]) == DISTANCES
    assert [shape["y0"] for shape in first.figure["layout"]["shapes"]] == [1.5]
    training = {chart.title: chart for chart in charts_of(TRAINING_SIGNS, {"small": numbers}, {})}
    lag = training["Error of the fake over that of the teacher"].figure
    assert [shape["y0"] for shape in lag["layout"]["shapes"]] == [1.0, 1.5]
    gap = training["Gap between teacher and fake"].figure["data"]
    assert [trace["name"] for trace in gap] == ["gap", "nsr<0.1", "nsr 0.32-1"]
    (levels,) = (chart for chart in level_charts(numbers["log"]) if chart.title == "Gap by noise level")
    assert [trace["name"] for trace in levels.figure["data"]] == ["1,000 images", "3,000 images", "4,000 images"]
    assert all(tuple(trace["y"]) == (0.2, 0.3) for trace in levels.figure["data"])


def test_a_comparison_keeps_protocols_apart_and_shows_what_differs(tmp_path: Path) -> None:
    changed = RECIPE.replace("alpha: 1.2", "alpha: 1.0").replace("/home/somebody/secret", "/other")
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other", recipe=changed)
    third = write_run(tmp_path / "third")
    write_lines(third / "metrics.jsonl", [{"images": 4000, "frechet": 7.0, "protocol": "fid50k", "samples": 50_000}])
    page = write_comparison([one, other, third], tmp_path / "page.html")
    text = words(page)
    assert "pca48(digits), 500 samples run Frechet distance one 2.5 other 2.5" in text
    assert "fid50k, 50,000 samples run Frechet distance third 7" in text
    assert "Numbers of different protocols do not compare" in text
    assert "key one other third objective.objective.alpha 1.2 1.0 1.2" in text and "teacher edm" not in text
    assert "Student: Frechet distance, pca48(digits), 500 samples" in text
    figures = re.findall(r'<script type="application/json" id="figure-\d+">(.*?)</script>', page.read_text())
    titles = [trace["name"] for trace in json.loads(figures[0])["data"]]
    assert titles == ["one", "other"]


WORSE: dict[str, Any] = {
    "a number beyond all floats": 10**400,
    "not a number": float("nan"),
    "infinite": float("inf"),
    "near the largest": 1.7e308,
    "a text": "a",
    "true": True,
    "a list": [1, 2],
    "null": None,
}


@pytest.mark.parametrize("name", WORSE)
def test_any_value_is_borne(name: str, tmp_path: Path) -> None:
    """In every place of a log, a measurement and the time of a line. The chart of what is whole stays."""
    value = WORSE[name]
    folder = write_run(tmp_path / "small")
    bad = line(2000, **dict.fromkeys(("fake/denoising", "fake/skipped", "health/gap", "alarms"), value))
    bad["time"] = {"seconds": value, "at": value, "images_per_second": value, "machine": {"device": value}}
    write_lines(folder / "log.jsonl", [line(1000), bad, bad | {"images": 3000, "time": value}, line(4000)])
    measured = {**PROTOCOL, "halves": value, "frechet": 2.0}
    write_lines(
        folder / "metrics.jsonl", [{"images": 2000, **measured}, {"images": 4000, **measured, "frechet": value}]
    )
    write_lines(folder / "health.jsonl", [{"images": 0, "distance": value, "diversity": 1.0}])
    report = {**PROTOCOL, "student": {"frechet": value}, "teacher": {"frechet": value}}
    (folder / "evaluation.json").write_text(json.dumps(report))
    page = write_report(folder).read_text()
    figures = re.findall(r'<script type="application/json" id="figure-\d+">(.*?)</script>', page)
    assert len(figures) > 5 and not any("NaN" in one or "Infinity" in one for one in figures)
    write_comparison([folder, folder], tmp_path / "page.html")
    screen(folder)


def test_numbers_of_another_protocol_are_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "small")
    other = {"images": 500, "frechet": 1.0, "protocol": "fid50k", "samples": 500}
    lines = [other, *({"images": at, "frechet": one, **PROTOCOL} for at, one in ((1000, 5.0), (2000, 4.0)))]
    write_lines(folder / "metrics.jsonl", lines)
    record = read_run(folder)
    assert record.best() == (2000, 4.0) and record.numbers["metrics"].curves["frechet"].mean == [5.0, 4.0]


def test_names_of_a_log_cannot_command_the_terminal(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "small")
    evil = "\x1b]0;evil\x07\x1b[2J"
    write_lines(folder / "log.jsonl", [line(1000, **{f"{evil}x/skipped": 1, f"{evil}/loss": 1.0})])
    console = Console(width=200, file=io.StringIO())
    console.print(screen(folder))
    assert "\x1b" not in console.file.getvalue() and "evil" in console.file.getvalue()  # type: ignore[attr-defined]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    one, other = (
        write_run(tmp_path / "a" / "run"),
        write_run(tmp_path / "b" / "run", recipe=RECIPE.replace("1.2", "1.0")),
    )
    text = words(write_comparison([one, other], tmp_path / "page.html"))
    assert "run, run (2)" in text and "key run run (2) objective.objective.alpha 1.2 1.0" in text
