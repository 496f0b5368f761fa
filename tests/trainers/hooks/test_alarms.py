"""Alarms: each fires on a log that fails its way and on no healthy one, once, with its cure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainers.engine.meter import BINS
from trainers.hooks.alarms import EVALUATION_RULES, HEALTH_RULES, LOG_RULES, RECOVERED, Alarms, Rule
from trainers.io.jsonl import append, read

DOCS = Path(__file__).resolve().parents[3] / "docs" / "health.md"
ROWS = 12


def log_lines(**series: Any) -> list[dict[str, Any]]:
    """A healthy log like that of digits_sid, with the given numbers by line, or the same one in every line."""
    healthy: dict[str, Any] = {f"health/fake_vs_teacher/{one}": [0.9, 1.0, 1.05] for one in BINS}
    healthy |= {"fake/grad_norm": [10.0, 12.0, 40.0, 9.0, 11.0], "health/accuracy": [0.6, 0.97, 0.98, 0.7]}
    healthy |= {"health/gap": [0.04, 0.073, 0.062, 0.059, 0.063, 0.052, 0.053, 0.052, 0.066, 0.054, 0.059, 0.06]}
    return rows({**healthy, "health/fake_loss": 0.6, **series})


def health_lines(**series: Any) -> list[dict[str, Any]]:
    """Healthy comparisons like those of a ViT of MNIST."""
    healthy: dict[str, Any] = {
        "distance": [0.157, 0.089, 0.061, 0.044, 0.036, 0.02, 0.01, 0.02, 0.008],
        "diversity": [0.74, 0.77, 0.79, 0.82, 0.86, 0.92, 0.95],
        "contrast": [0.869, 0.84, 0.843, 0.858, 0.9, 0.93],
        "mean": [0.15, 0.02, -0.03, -0.04, -0.05],
        "spectrum/0.5-1": [-1.27, -1.01, -0.87, -0.6, -0.3, 0.1],
        "spectrum/0.0625-0.125": [0.12, -0.06, -0.13, -0.2, -0.28],
    }
    return rows({**healthy, **series})


def evaluation_lines(**series: Any) -> list[dict[str, Any]]:
    """Evaluations of a run whose samples cover more and more."""
    return rows({"frechet": [9.0, 5.0, 4.0, 3.0], "recall": [0.1, 0.3, 0.4, 0.5, 0.48, 0.5], **series})


def rules_of(lines: list[dict[str, Any]]) -> tuple[Rule, ...]:
    if "distance" in lines[0]:
        return HEALTH_RULES
    return EVALUATION_RULES if "recall" in lines[0] else LOG_RULES


def rows(series: dict[str, Any]) -> list[dict[str, Any]]:
    """One line for each of ROWS numbers; the last number of a series goes on."""

    def at(values: Any, row: int) -> Any:
        return values[min(row, len(values) - 1)] if isinstance(values, list) else values

    return [{"images": 1000 * row, **{key: at(values, row) for key, values in series.items()}} for row in range(ROWS)]


def alarms(lines: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """(images, anchor) of the alarms that lines raise, with the text of the last one."""
    judged = Alarms(rules_of(lines))
    found = []
    for line in lines:
        for text in judged.judge(line).get("alarms", []):
            found.append((line["images"], text.rpartition("#")[2].rstrip(")")))
    return found


@pytest.mark.parametrize(
    "lines", [log_lines(), health_lines(), evaluation_lines()], ids=["log", "health", "evaluation"]
)
def test_a_healthy_run_raises_none(lines: list[dict[str, Any]]) -> None:
    assert alarms(lines) == []


HIGH = f"health/fake_vs_teacher/{BINS[-1]}"
FAILING = {
    "fake-lags-from-the-start": (log_lines(**{HIGH: [11.0, 12.0, 15.0]}), 1000),
    "fake-lags": (log_lines(**{HIGH: [0.9, 1.0, 1.0, 1.6, 1.7]}), 4000),
    "gap-grows": (log_lines(**{"health/gap": [0.04, 0.07, 0.06, 0.06, 0.06, 0.09, 0.1, 0.11]}), 7000),
    "fake-loss": (log_lines(**{"health/fake_loss": [3.9, 3.0, 1.4, 1.2]}), 0),
    "gradients-drift": (log_lines(**{"fake/grad_norm": [9.0, 8.0, 10.0, 9.0, 50.0, 9.0, 60.0, 70.0, 80.0]}), 7000),
    "discriminator-wins": (log_lines(**{"health/accuracy": [0.6, 0.96, 0.99, 0.94, 0.96, 0.97, 0.98]}), 8000),
    "worse-than-start": (health_lines(distance=[0.157, 0.17, 0.19, 0.2]), 3000),
    "stalled": (health_lines(distance=[0.157, 0.11, 0.101, 0.102, 0.102]), 3000),
    "diversity-lost": (health_lines(diversity=[0.74, 0.7, 0.67, 0.64]), 2000),
    "contrast": (health_lines(contrast=[0.869, 0.84, 0.8, 0.75]), 3000),
    "mean": (health_lines(mean=[0.05, 0.1, -0.18, -0.3]), 3000),
    "spectrum": (health_lines(**{"spectrum/0.5-1": [-1.27, -1.47, -1.5]}), 2000),
    "recall-falls": (evaluation_lines(recall=[0.1, 0.5, 0.39, 0.41, 0.39, 0.38]), 5000),
}


@pytest.mark.parametrize("name", FAILING)
def test_each_rule_fires_once_where_it_should(name: str) -> None:
    lines, images = FAILING[name]
    assert alarms(lines) == [(images, name)]


def test_every_rule_is_tested_and_has_its_anchor() -> None:
    names = [rule.name for rule in (*LOG_RULES, *HEALTH_RULES, *EVALUATION_RULES)]
    assert names == list(FAILING) and len(set(names)) == len(names)
    assert {f"### {name}" for name in names} <= set(DOCS.read_text().splitlines())


def test_the_words_say_number_bound_and_cure(capsys: pytest.CaptureFixture[str]) -> None:
    judged = Alarms(HEALTH_RULES)
    (text,) = [judged.judge(line) for line in FAILING["worse-than-start"][0]][3]["alarms"]
    assert text.startswith("distance is 0.2, above 0.193, since it was 0.157: ")  # 1.1 x 0.157 + 0.02
    assert "Lower generator.lr" in text and text.endswith("(docs/health.md#worse-than-start)")
    assert capsys.readouterr().err == f"alarm at 3,000 images: {text}\n"


def test_an_alarm_comes_again_after_it_recovered() -> None:
    bad, good = 3.0, 0.6
    short = [good, bad, good, good, bad, good, good]  # not RECOVERED in between
    assert RECOVERED == 3
    assert alarms(log_lines(**{"health/fake_loss": short})) == [(1000, "fake-loss")]
    longer = [bad, good, good, good, bad, good]
    assert alarms(log_lines(**{"health/fake_loss": longer})) == [(0, "fake-loss"), (4000, "fake-loss")]


@pytest.mark.parametrize("name", FAILING)
@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_resume_neither_repeats_nor_loses_one(name: str, at: int, tmp_path: Path) -> None:
    """The lines of a run that was stopped after any line are those of one that was not."""
    lines = FAILING[name][0]
    rules = rules_of(lines)
    whole = Alarms(rules)
    wanted = [whole.judge(line) for line in lines]
    before = Alarms(rules)
    for line in lines[:at]:
        append(tmp_path / "log.jsonl", before.judge(line))
    after = Alarms(rules, read(tmp_path / "log.jsonl"))
    for line in lines[at:]:
        append(tmp_path / "log.jsonl", after.judge(line))
    assert read(tmp_path / "log.jsonl") == wanted


def test_a_fake_that_trains_alone_is_no_stalled_student() -> None:
    assert alarms(health_lines(distance=[0.157])) == []


def test_a_student_that_starts_well_is_not_stalled() -> None:
    assert alarms(health_lines(distance=[0.01, 0.02, 0.015, 0.025, 0.018])) == []


def test_a_run_of_a_teacher_raises_none() -> None:
    assert alarms([{"images": 10, "teacher/denoising": 5.0}, {"images": 20, "teacher/denoising": 9.0}]) == []


def test_numbers_that_are_not_finite_neither_hide_nor_raise_an_alarm() -> None:
    nan = float("nan")
    norms = [1.0, 1.0, nan, 1.0, 1.0, 1.0, 1.0, 100.0, 100.0, 100.0, 100.0]
    assert alarms(log_lines(**{"fake/grad_norm": norms})) == [(9000, "gradients-drift")]
    assert alarms(log_lines(**{"health/gap": [0.1, 0.1, nan, 0.1, 0.1]})) == []


def test_a_recall_of_another_protocol_is_no_fall() -> None:
    lines = evaluation_lines(recall=[0.6, 0.6, 0.6, 0.31, 0.3], protocol=["a", "a", "a", "b"])
    assert alarms(lines) == []
