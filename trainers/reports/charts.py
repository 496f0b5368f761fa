"""The charts of a report, as figures of Plotly."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from distill.public_text import printable, public_text
from trainers.engine.meter import BINS
from trainers.reports.curves import HUGE, Curve, LogContent
from trainers.reports.signs import Sign

COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f", "#64748b", "#000000")
HEIGHT = 280  # pixels
BY_LEVEL = ("health/gap", "health/weight", "health/fake_vs_teacher")
DIGITS = 5  # of a number in the file, which sets its size
_BIN = re.compile(r"(?P<name>.*)/(?P<bin>nsr.*)")


@dataclass(frozen=True)
class Chart:
    """A figure with the words beside it.

    Attributes:
        title: The title.
        figure: The figure, as plain types for Plotly's JavaScript.
        normal: What a healthy run shows. Empty for none.
        alarming: What a failing run shows. Empty for none.
        note: What the points stand for, where that is not one line each.
    """

    title: str
    figure: dict[str, Any]
    normal: str = ""
    alarming: str = ""
    note: str = ""


def charts_of(
    signs: Sequence[Sign], runs: Mapping[str, Mapping[str, LogContent]], lines: Mapping[str, Mapping[str, float]]
) -> list[Chart]:
    """Return the charts that runs have numbers for.

    Args:
        signs: The descriptions of the charts.
        runs: The name of each run -> the source (log, health or metrics) -> its numbers.
        lines: The name of a number -> the names and values of horizontal lines in its chart, such as the teacher's.
    """
    found = []
    for sign in signs:
        curves = {(run, name): curve for run, numbers in runs.items() for name, curve in _matching(sign, numbers)}
        names = list(dict.fromkeys(name for _, name in curves))
        for group in [[name] for name in names] if sign.by_name else [names] if names else []:
            chosen = {key: curve for key, curve in curves.items() if key[1] in group}
            title = sign.title.format(name=printable(shown_name(group[0].rpartition("/")[2])))
            marks = {f"{bound:g}": bound for bound in sign.bounds} | dict(lines.get(group[0], {}))
            figure = _figure(_labelled(chosen, len(runs) > 1), marks, sign.logarithmic)
            thinned = any(curve.thinned for curve in chosen.values())
            note = (
                "A point is the mean of several lines, and the band goes from the least to the most." if thinned else ""
            )
            found.append(Chart(title, figure, sign.normal, sign.alarming, note))
    return found


def level_charts(numbers: LogContent) -> list[Chart]:
    """Return charts of gap, weight and error by noise level, at the start, in the middle and at the end of a log."""
    titles = ("Gap by noise level", "Weight by noise level", "Error of the fake over the teacher's, by noise level")
    found = []
    for name, title in zip(BY_LEVEL, titles, strict=True):
        curves = [(level, numbers.curves[f"{name}/{level}"]) for level in BINS if f"{name}/{level}" in numbers.curves]
        if not curves:
            continue
        figure = _graph().Figure()
        for share, colour in ((0.0, "#93c5fd"), (0.5, "#3b82f6"), (1.0, "#1e3a8a")):
            points = [(level, curve, round(share * (len(curve.mean) - 1))) for level, curve in curves]
            images = max(curve.images[at] for _, curve, at in points)
            figure.add_scatter(
                x=[level for level, _, _ in points],
                y=[_rounded(curve.mean[at]) for _, curve, at in points],
                name=f"{images:,} images",
                mode="lines+markers",
                line={"color": colour},
            )
        found.append(Chart(title, _styled(figure, {}, name == "health/weight")))
    return found


def shown_name(name: str) -> str:
    """Return the name of a number as a person reads it."""
    return {"frechet": "Frechet distance", "fake_vs_teacher": "all levels"}.get(name, name.replace("_", " "))


def _matching(sign: Sign, numbers: Mapping[str, LogContent]) -> Iterator[tuple[str, Curve]]:
    """Yield the curves of a chart by name."""
    curves = numbers[sign.source].curves if sign.source in numbers else {}
    return ((name, curve) for name, curve in curves.items() if re.fullmatch(sign.names, name))


def _labelled(curves: Mapping[tuple[str, str], Curve], several: bool) -> dict[str, Curve]:
    """Return curves by the labels of a legend, which leave out what all of them share."""
    found = {}
    for (run, name), curve in curves.items():
        level = _BIN.fullmatch(name)
        short = level["bin"] if level else shown_name(name.removeprefix("health/").removeprefix("time/"))
        alone = len({key for _, key in curves}) == 1
        found[run if several and alone else f"{run}: {short}" if several else short] = curve
    return found


def _figure(curves: Mapping[str, Curve], marks: Mapping[str, float], logarithmic: bool) -> dict[str, Any]:
    """Return the figure of curves over images, with horizontal lines."""
    figure = _graph().Figure()
    for number, (label, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        if curve.thinned:
            figure.add_scatter(
                x=[*curve.images, *reversed(curve.images)],
                y=[_rounded(value) for value in [*curve.high, *reversed(curve.low)]],
                fill="toself",
                fillcolor=f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:7], 16)},0.15)",
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                legendgroup=label,
            )
        figure.add_scatter(
            x=curve.images,
            y=list(map(_rounded, curve.mean)),
            name=public_text(label),
            mode="lines+markers" if len(curve.images) < 30 else "lines",
            line={"color": colour, "width": 1.6},
            marker={"size": 5},
            legendgroup=label,
        )
    figure.update_layout(showlegend=len(curves) > 1)
    return _styled(figure, marks, logarithmic)


def _styled(figure: Any, marks: Mapping[str, float], logarithmic: bool) -> dict[str, Any]:
    """Return a figure in the style of the report, as plain types."""
    for label, value in marks.items():
        if abs(value) < HUGE and (value > 0 or not logarithmic):
            figure.add_hline(
                y=value,
                line={"dash": "dot", "width": 1, "color": "#6b7280"},
                annotation_text=label,
                annotation_font_size=10,
            )
    axis = {"gridcolor": "#e5e7eb", "zerolinecolor": "#d1d5db", "linecolor": "#9ca3af"}
    figure.update_layout(
        template="none",
        height=HEIGHT,
        margin={"l": 56, "r": 12, "t": 8, "b": 30},
        font={"family": "system-ui, sans-serif", "size": 11},
        hovermode="x unified",
        legend={"orientation": "h", "y": -0.14, "font": {"size": 10}},
        xaxis=axis,
        yaxis={**axis, "type": "log" if logarithmic else "linear", "exponentformat": "power"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    return figure.to_dict()  # type: ignore[no-any-return]


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


@cache
def _graph() -> Any:
    """Return Plotly's figures, which take a second to import."""
    from plotly import graph_objects

    return graph_objects
